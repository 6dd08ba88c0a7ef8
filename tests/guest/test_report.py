#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Unit tests of what the guest's host side makes of records and counters: no run
that lost, failed or bypassed something may pass. Needs no QEMU.
"""

import copy
import unittest

import report
from disks import Disk
from records import GuestRecord

DISK = Disk('d0', ['io0'], '/dev/null', 'raw', full=True, read_only=False,
            scratch=True)
SPREAD = Disk('d0', ['io0', 'io1'], '/dev/null', 'raw', full=True,
              read_only=False, scratch=True, queues=3)
STAT = '10 0 80 5 20 0 160 5 0 10 10 2 0 99 1 3 1'
JOB = '{"jobs": [{"error": 0, "read": {"total_ios": 1}, "write": {}}]}'
INFO = {
    'state': 'started', 'serving': True, 'starts': 1,
    'queues': [{'queue': 0, 'iothread': 'io0', 'reads': 10, 'writes': 18,
                'write-zeroes': 2, 'discards': 2, 'flushes': 3, 'other': 1,
                'completed': 36, 'in-flight': 0, 'errors': 0}],
}
OFF = {'state': 'stopped', 'serving': False, 'starts': 0, 'queues': []}


def good_guest() -> GuestRecord:
    """The records of a run in which all went well."""
    guest = GuestRecord()
    for name in report.FULL_CHECKS:
        guest.add(f'pass d0 {name} what it is')
        if name in report.FIO_CHECKS:
            guest.add(f'fio d0 {name} {JOB}')
    guest.add(f'stat d0 {STAT}')
    return guest


def with_queue(**counters) -> dict:
    """INFO with some counters of its queue changed."""
    info = copy.deepcopy(INFO)
    info['queues'][0].update(
        {name.replace('_', '-'): value for name, value in counters.items()})
    return info


class Records(unittest.TestCase):
    """Lines from the guest."""

    def test_garbled_lines_are_kept(self):
        """Nothing that the guest sent is dropped silently."""
        guest = GuestRecord()
        for line in ('', 'nonsense', 'stat d0 1 x', 'fio d0 random {broken',
                     'sample d0 1'):
            guest.add(line)
        self.assertEqual(len(guest.garbled), 5)

    def test_failure_is_shown_at_once(self):
        """A failed check is a line of progress, too."""
        self.assertIn('FAILED', GuestRecord().add('fail d0 discard discard'))


class Verdict(unittest.TestCase):
    """Which runs are good."""

    def setUp(self):
        self.guest = good_guest()
        self.record = self.guest.disk('d0')

    def disk(self):
        """Problems on the guest's side."""
        return list(report.disk_problems(DISK, self.record))

    def plane(self, info):
        """Problems on the plane's side."""
        return list(report.plane_problems(DISK, self.record, info))

    def test_good(self):
        """Nothing to complain about."""
        self.assertEqual(self.guest.garbled, [])
        self.assertEqual(self.disk(), [])
        self.assertEqual(self.plane(INFO), [])
        self.assertEqual(list(report.final_problems(DISK, INFO)), [])
        self.assertEqual(list(report.stock_problems(DISK, OFF)), [])

    def test_every_check_must_be_there(self):
        """A test that ended early is no success."""
        for missing in list(self.record.checks):
            self.record.checks.remove(missing)
            self.assertEqual(len(self.disk()), 1, missing.name)
            self.record.checks.append(missing)

    def test_failed_check(self):
        """What did not verify in the guest."""
        self.guest.add('fail d0 random random 4 KiB')
        self.assertEqual(len(self.disk()), 1)

    def test_fio_error(self):
        """fio's own verdict counts."""
        self.record.fio['random']['error'] = 84
        self.assertEqual(len(self.disk()), 1)

    def test_fio_read_nothing(self):
        """Nothing read back is nothing verified."""
        self.record.fio['random']['read']['total_ios'] = 0
        self.assertEqual(len(self.disk()), 1)

    def test_no_fio_results(self):
        """A job that says nothing proves nothing."""
        del self.record.fio['sizes']
        self.assertEqual(len(self.disk()), 1)

    def test_no_plane(self):
        """A QEMU without the plane, or a plane that does not serve."""
        self.assertTrue(self.plane(None))
        self.assertTrue(self.plane(OFF))
        self.assertTrue(self.plane({**INFO, 'serving': False}))

    def test_requests_that_went_elsewhere(self):
        """The plane must have served what the guest counted."""
        for name, value in (('reads', 9), ('writes', 10), ('discards', 1),
                            ('flushes', 2)):
            self.assertEqual(len(self.plane(with_queue(**{name: value}))), 1,
                             name)

    def test_type_never_served(self):
        """Each type of request must have been there."""
        for name in report.FULL_REQUESTS:
            self.assertTrue(self.plane(with_queue(**{name: 0})), name)

    def test_queue_checks_must_be_there(self):
        """A disk with several queues must have been tested as such."""
        problems = list(report.disk_problems(SPREAD, self.record))
        self.assertEqual(len(problems), len(report.FULL_QUEUE_CHECKS))

    def test_queues(self):
        """Each queue served something, on the IOThread that it belongs to."""
        info = copy.deepcopy(INFO)
        for number, iothread in ((1, 'io1'), (2, 'io0')):
            info['queues'].append({**info['queues'][0], 'queue': number,
                                   'iothread': iothread})
        self.assertEqual(list(report.queue_problems(SPREAD, info)), [])
        for change in ({'completed': 0}, {'iothread': 'io7'}, {'queue': 7}):
            for number in range(3):
                wrong = copy.deepcopy(info)
                wrong['queues'][number].update(change)
                self.assertEqual(
                    len(list(report.queue_problems(SPREAD, wrong))), 1)

    def test_left_over(self):
        """Requests that never ended, or that failed."""
        for counter in ('in_flight', 'errors'):
            info = with_queue(**{counter: 1})
            self.assertEqual(len(list(report.final_problems(DISK, info))), 1)

    def test_plane_on_when_off(self):
        """--stock must not be served by the plane."""
        self.assertTrue(list(report.stock_problems(DISK, INFO)))


if __name__ == '__main__':
    unittest.main()
