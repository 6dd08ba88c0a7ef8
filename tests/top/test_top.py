#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Test what virtio-blk-top calculates and how it writes numbers, without a VM.

What a QEMU answers is given to the reader by a monitor that is a table.
"""

import asyncio
import math
import sys
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent
                       / 'contrib' / 'virtio-blk-top'))

# pylint: disable=wrong-import-position
from virtio_blk_top.errors import NotOffered, Refused  # noqa: E402
from virtio_blk_top.histogram import Histogram, add_up  # noqa: E402
from virtio_blk_top.rates import rows, thread_rows  # noqa: E402
from virtio_blk_top.reader import Reader  # noqa: E402
from virtio_blk_top.text import (amount, count, duration,  # noqa: E402
                                 seconds, share)


class Numbers(unittest.TestCase):
    """text.py"""

    def test_amount(self):
        """Three digits, and a prefix as soon as there is a fourth."""
        for value, text in ((None, '-'), (0, '0'), (0.5, '0.50'),
                            (9.994, '9.99'), (9.996, '10.0'), (99.96, '100'),
                            (999.4, '999'), (999.6, '1.00k'), (12345, '12.3k'),
                            (1e9, '1.00G')):
            self.assertEqual(amount(value), text)

    def test_duration(self):
        """A unit in which it has one to three digits."""
        for value, text in ((None, '-'), (0, '0'), (1, '0.00us'),
                            (999400, '999us'), (999600, '1.00ms'),
                            (28.6e9, '28.6s'), (101e9, '2m'), (7200e9, '2h')):
            self.assertEqual(duration(value), text)

    def test_others(self):
        """Counts and shares."""
        self.assertEqual([count(value) for value in (None, 0, 9999, 10000)],
                         ['-', '0', '9999', '10.0k'])
        self.assertEqual([share(value) for value in (None, 0, 0.994, 1)],
                         ['-', '0%', '99%', '100%'])

    def test_seconds(self):
        """Both sides of both bounds, and what is no number."""
        self.assertEqual([seconds('0.1'), seconds('3600')], [0.1, 3600])
        for text in ('0.09', '3601', '', 'x', 'nan', 'inf', '-1'):
            with self.assertRaises(ValueError):
                seconds(text)


class Histograms(unittest.TestCase):
    """histogram.py"""

    def test_quantile(self):
        """Values are spread evenly in their interval."""
        histogram = Histogram((10, 20, 40), (0, 4, 4))
        for part, value in ((0.0, 10), (0.25, 15), (0.5, 20), (0.75, 30),
                            (1.0, 40)):
            self.assertEqual(histogram.quantile(part), value)
        self.assertEqual(histogram.maximum(), 40)

    def test_open_end(self):
        """Of what is above all bounds the lower one is told."""
        histogram = Histogram((10, math.inf), (1, 99))
        self.assertEqual(histogram.quantile(0.5), 10)
        self.assertEqual(histogram.maximum(), 10)

    def test_empty(self):
        """Nothing has no quantile."""
        histogram = Histogram((10, math.inf), (0, 0))
        self.assertIsNone(histogram.quantile(0.5))
        self.assertIsNone(histogram.maximum())

    def test_since(self):
        """Differences, but not over a change."""
        old = Histogram((10, 20), (1, 2))
        self.assertEqual(Histogram((10, 20), (1, 5)).since(old).counts, (0, 3))
        self.assertIsNone(Histogram((10, 20), (0, 9)).since(old))
        self.assertIsNone(Histogram((10, 30), (9, 9)).since(old))
        self.assertIsNone(old.since(None))

    def test_sum(self):
        """Only of what has the same bounds, and all of it."""
        one, other = Histogram((1, 2), (1, 2)), Histogram((1, 3), (1, 2))
        self.assertEqual(add_up([one, one]).counts, (2, 4))
        for wrong in ([], [one, None], [one, other]):
            self.assertIsNone(add_up(wrong))


DISK = '/machine/peripheral/disk0/virtio-backend'


class Table:
    """A monitor. Answers stand in a table, and properties in another."""

    def __init__(self, **answers):
        self.answers = {
            'query-version': {'qemu': {'major': 10, 'minor': 0, 'micro': 13}},
            'query-name': {}, 'query-status': {'status': 'running'},
            'query-iothreads': [{'id': 'io0'}],
            'query-blockstats': [self.disk(0, 0), {'qdev': '/machine/cd',
                                                   'stats': {}}, {}],
            'query-stats': None, 'qom-get': None,
            'x-query-virtio-blk-requests': None, **answers}
        self.properties = {'type': 'virtio-blk-device'}
        self.requests = {}

    @staticmethod
    def disk(reads, failed):
        """In the answer of query-blockstats."""
        stats = {f'{kind}_{what}': 0 for kind in ('rd', 'wr')
                 for what in ('operations', 'bytes', 'total_time_ns')}
        stats.update({'rd_operations': reads, 'rd_bytes': reads * 512,
                      'rd_total_time_ns': reads * 1000,
                      'failed_rd_operations': failed})
        return {'qdev': DISK, 'stats': stats}

    @staticmethod
    def queue(index, completed, in_flight=0):
        """In x-data-plane-info."""
        return {'queue': index, 'iothread': 'io0', 'completed': completed,
                'batches': completed // 4, 'kicks': completed // 8,
                'notifications-sent': completed // 2, 'direct': completed,
                'in-flight': in_flight}

    async def execute(self, command, arguments=None):
        """As a QMP monitor."""
        if command == 'query-commands':
            return [{'name': name} for name in self.answers]
        if command == 'qom-get':
            try:
                return self.properties[arguments['property']]
            except KeyError:
                raise Refused('no such property') from None
        if command == 'x-query-virtio-blk-requests':
            try:
                return self.requests[arguments['queue']]
            except KeyError:
                raise Refused('the VM is strange.') from None
        if command == 'query-stats' and not self.answers[command]:
            raise Refused('no such target')
        if command not in self.answers:
            raise NotOffered(command)
        return self.answers[command]

    def read(self):
        """What the reader makes of it."""
        async def both():
            reader = Reader(self)
            await reader.start()
            return await reader.read()
        return asyncio.run(both())


class Rates(unittest.TestCase):
    """reader.py and rates.py"""

    def test_without_series(self):
        """What is not there is unknown, and named."""
        table = Table()
        before, now = table.read(), table.read()
        row, = rows('vm', now, before, False)
        self.assertEqual((row.iops, row.mbps), (0, 0))
        self.assertEqual((row.in_flight, row.kicks, row.latency),
                         (None, None, None))
        thread, = thread_rows('vm', now, before)
        self.assertIsNone(thread.busy)
        self.assertEqual(len(now.missing), 3)

    def pair(self, table, reads, failed, *queues):
        """Two readings that are 2 seconds apart."""
        before = table.read()
        table.answers['query-blockstats'] = [table.disk(reads, failed)]
        if queues:
            table.properties['x-data-plane-info']['queues'] = list(queues)
        now = table.read()
        for disk, then in zip(now.disks, before.disks):
            disk.time = then.time + 2
            disk.queues_time = then.queues_time + 2
        return now, before

    def test_disk(self):
        """Failed requests are requests, but have no latency."""
        row, = rows('vm', *self.pair(Table(), 600, 200), False)
        self.assertEqual((row.iops, row.errors), (400, 100))
        self.assertAlmostEqual(row.mbps, 600 * 512 / 2 / 1e6)
        self.assertEqual(row.average, 1000)

    def test_queues(self):
        """Rates of each queue, and of the disk from all of them."""
        table = Table()
        table.properties['x-data-plane-info'] = {
            'serving': True, 'queues': [table.queue(0, 0), table.queue(1, 0)]}
        empty = {'requests': [], 'total': 0}
        table.requests = {0: empty, 1: {'requests': [
            {'age-ns': 7, 'stage': 'parked'}], 'total': 3}}
        pair = self.pair(table, 0, 0, table.queue(0, 800),
                         table.queue(1, 0))
        first, second = rows('vm', *pair, True)
        self.assertEqual((first.iops, first.batch, first.kicks,
                          first.interrupts, first.direct),
                         (400, 4, 0.125, 0.5, 1))
        self.assertEqual((second.iops, second.batch), (0, None))
        self.assertEqual((first.oldest, second.oldest, second.stage,
                          second.in_flight), (None, 7, 'parked', 3))
        row, = rows('vm', *pair, False)
        self.assertEqual((row.batch, row.in_flight, row.oldest, row.stage),
                         (4, 3, 7, 'parked'))

    def test_latency(self):
        """Of queues from query-stats, rather than of the disk."""
        table = Table()
        table.properties['x-data-plane-info'] = {
            'serving': True, 'queues': [table.queue(0, 0), table.queue(1, 0)]}
        disk = table.answers['query-blockstats'][0]
        disk['stats']['rd_latency_histogram'] = {'boundaries': [5],
                                                 'bins': [0, 9]}

        def stats(queue, *counts):
            return {'qom-path': DISK, 'queue': queue, 'stats': [
                {'name': 'reads', 'value': sum(counts)},
                {'name': 'read-latency', 'value': list(counts)}]}

        empty = [0] * 5
        table.answers['query-stats'] = [stats(0, *empty), stats(1, *empty)]
        before = table.read()
        table.answers['query-stats'] = [stats(0, 0, 0, 0, 2, 0),
                                        stats(1, 0, 0, 2, 0, 0)]
        now = table.read()
        first, second = rows('vm', now, before, True)
        self.assertEqual((first.latency.p50, first.latency.max), (6, 8))
        self.assertEqual(second.latency_of['read'].max, 4)
        row, = rows('vm', now, before, False)
        self.assertEqual((row.latency.p50, row.latency.max), (4, 8))
        self.assertNotIn('latency p50, p99, max', now.missing)

    def test_refused(self):
        """QEMU's reason is shown, and in-flight counters are used."""
        table = Table()
        table.properties['x-data-plane-info'] = {
            'serving': False, 'queues': [table.queue(0, 0, 5)]}
        sample = table.read()
        self.assertEqual(sample.disks[0].missing,
                         {'oldest request': 'the VM is strange'})
        self.assertEqual(sample.disks[0].in_flight, 5)

    def test_counter_went_back(self):
        """A disk that was unplugged and plugged has no rate then."""
        table = Table()
        table.answers['query-blockstats'] = [table.disk(1000, 0)]
        row, = rows('vm', *self.pair(table, 10, 0), False)
        self.assertIsNone(row.iops)

    def test_new_disk(self):
        """There is nothing to compare with."""
        table = Table()
        now, before = self.pair(table, 1, 0)
        before.disks.clear()
        row, = rows('vm', now, before, False)
        self.assertIsNone(row.iops)

    def test_iothread(self):
        """Shares of the thread's own time."""
        table = Table()
        times = {'busy-ns': 0, 'poll-ns': 0, 'idle-ns': 0, 'wakeups': 0}
        table.answers['query-iothreads'] = [{'id': 'io0', **times}]
        before = table.read()
        table.answers['query-iothreads'] = [
            {'id': 'io0', 'busy-ns': 10, 'poll-ns': 30, 'idle-ns': 60,
             'wakeups': 8}]
        now = table.read()
        now.time = before.time + 2
        row, = thread_rows('vm', now, before)
        self.assertEqual((row.busy, row.poll, row.idle, row.wakeups),
                         (0.1, 0.3, 0.6, 4))


if __name__ == '__main__':
    unittest.main()
