#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Unit tests of what the boot test makes of counters: no boot in which firmware
or Linux went past the plane may pass. Needs no QEMU.
"""

import os
import sys
import unittest
from typing import List

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'guest'))

# pylint: disable=wrong-import-position
import verdicts  # noqa: E402

WHY = 'the driver speaks another language'
#: the guest: 100 reads, 20 writes, 2 discards, 3 flushes
STAT = [100, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0]


def info(serving: bool = True, starts: int = 2, **counters: int) -> dict:
    """What the plane says after a good boot, but for what is given."""
    queue = {'queue': 0, 'iothread': 'io0', 'reads': 150, 'writes': 20,
             'write-zeroes': 0, 'discards': 2, 'flushes': 3, 'completed': 175,
             'in-flight': 0, 'errors': 0}
    queue.update({name.replace('_', '-'): value
                  for name, value in counters.items()})
    result = {'state': 'started' if serving else 'stopped',
              'serving': serving, 'starts': starts, 'queues': [queue]}
    if not serving:
        result['reason'] = WHY
    return result


def problems(now: dict, before=None) -> List[str]:
    """With 50 reads that the firmware needs."""
    return list(verdicts.boot_problems(before, now, STAT, 50))


class Boot(unittest.TestCase):
    """A disk that was booted from."""

    def test_good(self):
        """Firmware and Linux, both on the plane."""
        self.assertEqual(problems(info()), [])

    def test_plane_off(self):
        """Nothing served, nothing counted: each verdict says so."""
        off = {'state': 'stopped', 'serving': False, 'starts': 0,
               'queues': [], 'reason': 'not configured'}
        self.assertEqual(len(problems(off)), 7)

    def test_bad(self):
        """One thing each."""
        for now, word in (
                (info(reads=149), 'of the firmware'),
                (info(reads=99), 'served only 99'),
                (info(writes=16), 'served only 16'),
                (info(flushes=2), 'served only 2'),
                (info(starts=1), 'started 1 times'),
                (info(serving=False), WHY)):
            with self.subTest(word):
                self.assertIn(word, '; '.join(problems(now)))

    def test_empty_writes(self):
        """A flush without data is one of the guest's few writes."""
        self.assertEqual(problems(info(writes=17)), [])

    def test_reboot(self):
        """What was before the reboot does not count again."""
        now = info(starts=4, reads=300, writes=40, discards=4, flushes=6)
        self.assertEqual(problems(now, before=info()), [])
        self.assertNotEqual(problems(info(), before=info()), [])


class Rest(unittest.TestCase):
    """Queues, and the end."""

    def test_idle_queue(self):
        """A queue that served nothing is named."""
        self.assertEqual(verdicts.idle_queues(info()), [])
        self.assertEqual(verdicts.idle_queues(info(completed=0)), [0])

    def test_end(self):
        """Nothing in flight, nothing failed."""
        self.assertEqual(list(verdicts.end_problems(info())), [])
        for counter in ('in_flight', 'errors'):
            self.assertEqual(
                len(list(verdicts.end_problems(info(**{counter: 1})))), 1)


if __name__ == '__main__':
    unittest.main()
