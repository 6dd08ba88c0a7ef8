# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Everything that can be asked about a disk, asked all the time.

A thread with a monitor of its own asks while other things are done to the
disk, and sees that counters do not go backwards. It also moves queues, as
software that spreads the load may do at any time.

covers: M4
"""

import random
import threading
import time
from typing import Callable, Dict, Optional

from machine import (BACKEND, DEVICE, Machine, Refused, SoakError,
                     set_queue_iothread)

#: seconds between two questions
PACE = 0.005
#: a queue is moved one time in ... that it could be
MOVE_CHANCE = 4


#: refusals while the disk is unplugged, or between reset and start, and what
#: QEMU does not tell of packed rings
EXPECTED = ('not found', 'Cannot find', 'could not be found',
            'is not a VirtIO', 'not a realized VirtIODevice',
            'is not the QOM path', 'does not serve', 'try again',
            'Region caches not initialized', 'Invalid virtqueue number',
            'No virtio devices found', 'Packed ring not supported')


class Queries:
    """Use as 'with Queries(vm)'; raises at the end what went wrong."""

    def __init__(self, vm: Machine):
        self._vm = vm
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: Optional[SoakError] = None
        self._last: Dict[str, int] = {}
        # The machine's is for the thread of the scenarios.
        self._chance = random.Random(vm.chance.random())
        #: how often the disk had been plugged or unplugged then
        self._plugs = -1
        #: questions that were answered
        self.answers = 0

    def __enter__(self) -> 'Queries':
        self._monitor = self._vm.monitor('other')
        self._thread.start()
        return self

    def __exit__(self, kind, *_exc) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            if self._error is not None:
                raise self._error
            if not self.answers:
                raise SoakError('no question was answered')

    def _run(self) -> None:
        questions = (self._blockstats, self._plane, self._virtio,
                     self._queue_status, self._others, self._histogram,
                     self._move)
        while not self._stop.is_set():
            for question in questions:
                if not self._ask(question):
                    return
                time.sleep(PACE)

    def _ask(self, question: Callable[[], None]) -> bool:
        try:
            question()
            self.answers += 1
        except Refused as error:
            if not any(words in str(error) for words in EXPECTED):
                self._error = SoakError(f'a query: {error}')
                return False
        except SoakError as error:
            self._error = SoakError(f'the queries: {error}')
            return False
        return True

    def _rising(self, plugs: int, values: Dict[str, int]) -> None:
        """Counters that never go back, but begin anew with the device."""
        if plugs != self._vm.plugs or plugs != self._plugs:
            # Whose they are is not known.
            self._plugs = self._vm.plugs
            self._last.clear()
            return
        for name, value in values.items():
            last = self._last.get(name, 0)
            if value < last:
                raise SoakError(f'{name} went back from {last} to {value}')
            self._last[name] = value

    def _blockstats(self) -> None:
        plugs = self._vm.plugs
        for entry in self._monitor.cmd('query-blockstats'):
            if entry.get('qdev') == BACKEND:
                stats = entry['stats']
                self._rising(plugs, {name: stats[name] for name in (
                    'rd_operations', 'wr_operations', 'flush_operations',
                    'rd_bytes', 'wr_bytes', 'unmap_operations')})

    def _plane(self) -> None:
        plugs = self._vm.plugs
        info = self._monitor.cmd('qom-get', path=BACKEND,
                                 property='x-data-plane-info')
        self._rising(plugs, {f'{name} of queue {number}': queue[name]
                             for number, queue in enumerate(info['queues'])
                             for name in ('completed', 'reads', 'writes',
                                          'flushes', 'batches')})

    def _virtio(self) -> None:
        self._monitor.cmd('x-query-virtio')
        self._monitor.cmd('x-query-virtio-status', path=BACKEND)

    def _queue_status(self) -> None:
        for queue in range(self._vm.config.queues):
            self._monitor.cmd('x-query-virtio-queue-status', path=BACKEND,
                              queue=queue)
            self._monitor.cmd('x-query-virtio-queue-element', path=BACKEND,
                              queue=queue)

    def _others(self) -> None:
        for name in ('query-iothreads', 'query-block', 'query-block-jobs',
                     'query-named-block-nodes', 'query-jobs', 'query-status'):
            self._monitor.cmd(name)
        self._monitor.hmp('info qtree')
        self._monitor.hmp(f'info block -v {DEVICE}')

    def _histogram(self) -> None:
        boundaries = [10, 100, 1000] if self.answers % 2 else [50]
        self._monitor.cmd('block-latency-histogram-set', id=BACKEND,
                          boundaries=boundaries)

    def _move(self) -> None:
        vm = self._vm
        if not vm.tools.stock and not self._chance.randrange(MOVE_CHANCE):
            set_queue_iothread(self._monitor,
                               self._chance.randrange(vm.config.queues),
                               self._chance.choice(vm.all_iothreads()))
