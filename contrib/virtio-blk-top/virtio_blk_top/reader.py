# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
One reading of a VM's counters, from whatever its QEMU offers.

The only module that knows QEMU's commands and what their answers look like.
Others get a Sample, in which None, or an empty table, is what could not be
read; "missing" says why. Changes nothing in the VM.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Protocol, Tuple

from .errors import NotOffered, Refused
from .histogram import Histogram

DISK_TYPE = 'virtio-blk-device'
BACKEND = '/virtio-backend'
#: in query-stats
PROVIDER, TARGET = 'virtio-blk', 'virtio-queue'
LATENCY = '-latency'
NOT_OFFERED = 'not offered by this QEMU'

#: kinds of requests as query-blockstats names them, and as we do
KINDS = {'rd': 'read', 'wr': 'write', 'flush': 'flush', 'unmap': 'discard',
         'zone_append': 'zone-append'}
#: those that move data
SIZED = ('rd', 'wr')

#: counters of a queue that only grow, as x-data-plane-info names them
QUEUE_KINDS = ('reads', 'writes', 'flushes', 'discards', 'write-zeroes',
               'other')
QUEUE_COUNTERS = QUEUE_KINDS + (
    'errors', 'completed', 'batches', 'kicks', 'polled', 'notifications-sent',
    'notifications-suppressed', 'merged', 'direct', 'fixed-buffers')


class Monitor(Protocol):
    """What monitor.py has."""

    async def execute(self, command: str,
                      arguments: Optional[Dict[str, object]] = None) -> Any:
        """Runs a command."""


@dataclass
class Oldest:
    """The oldest request in flight; kind is None if QEMU does not know it."""
    age_ns: int
    stage: str
    kind: Optional[str]


@dataclass
class Queue:
    """
    counters: the members of QUEUE_COUNTERS that this QEMU has
    latency: by kind, from the queue to the driver; empty if not offered
    bound: the IOThread to which it is on its way
    """
    index: int
    iothread: Optional[str]
    counters: Dict[str, int]
    in_flight: int
    not_direct: Optional[str]
    latency: Dict[str, Histogram] = field(default_factory=dict)
    oldest: Optional[Oldest] = None
    bound: Optional[str] = None


@dataclass
class Disk:
    """
    time, queues_time: when the disk's own counters were read, and its queues',
        in seconds of the monotonic clock
    operations, failed, time_ns: by kind; failed ones are not in the first
    size: bytes of reads and of writes
    latency: by kind, where the user has asked QEMU for it
    serving: whether the data plane serves it; None if this QEMU has none
    reason: why it does not
    """
    name: str
    path: str
    time: float
    operations: Dict[str, int]
    failed: Dict[str, int]
    size: Dict[str, int]
    time_ns: Dict[str, int]
    latency: Dict[str, Histogram]
    queues_time: float = 0.0
    serving: Optional[bool] = None
    reason: Optional[str] = None
    queues: List[Queue] = field(default_factory=list)
    missing: Dict[str, str] = field(default_factory=dict)

    @property
    def in_flight(self) -> Optional[int]:
        """Requests of all queues; None if they cannot be read."""
        if not self.queues:
            return None
        return sum(queue.in_flight for queue in self.queues)

    @property
    def oldest(self) -> Optional[Oldest]:
        """Of all queues."""
        return max((queue.oldest for queue in self.queues if queue.oldest),
                   key=lambda oldest: oldest.age_ns, default=None)


@dataclass
class IOThread:
    """Times in ns, from its creation."""
    name: str
    busy_ns: Optional[int]
    poll_ns: Optional[int]
    idle_ns: Optional[int]
    wakeups: Optional[int]


@dataclass
class Sample:
    """
    time: when, in seconds of the monotonic clock
    missing: what could not be read, by name, and why
    """
    time: float
    status: str
    version: str
    disks: List[Disk]
    iothreads: List[IOThread]
    missing: Dict[str, str]

    def all_missing(self) -> Dict[str, str]:
        """Those of the VM and of its disks."""
        result = dict(self.missing)
        for disk in self.disks:
            result.update({f'{disk.name}: {what}': why
                           for what, why in disk.missing.items()})
        return result


class Reader:
    """Reads a VM through its monitor."""

    def __init__(self, monitor: Monitor):
        self._monitor = monitor
        self._version = ''
        self._commands: Tuple[str, ...] = ()

    async def start(self) -> str:
        """
        To be called first; returns the VM's name, or '' if it has none.

        :raise Trouble: if the VM cannot be read.
        """
        execute = self._monitor.execute
        version = (await execute('query-version'))['qemu']
        self._version = '{major}.{minor}.{micro}'.format(**version)
        self._commands = tuple(entry['name'] for entry
                               in await execute('query-commands'))
        return str((await execute('query-name')).get('name', ''))

    async def read(self) -> Sample:
        """
        :raise Ended: when the VM has.
        :raise Trouble: if it does not answer.
        """
        missing: Dict[str, str] = {}
        status = (await self._monitor.execute('query-status'))['status']
        disks = await self._disks(missing)
        iothreads = await self._iothreads(missing)
        return Sample(time.monotonic(), status, self._version, disks,
                      iothreads, missing)

    async def _ask(self, command: str, arguments: Optional[dict] = None) -> Any:
        """Runs a command if this QEMU has it."""
        if command not in self._commands:
            raise NotOffered(NOT_OFFERED)
        return await self._monitor.execute(command, arguments)

    async def _get(self, path: str, name: str) -> Any:
        """A property of a QOM object."""
        return await self._ask('qom-get', {'path': path, 'property': name})

    # ---- IOThreads

    async def _iothreads(self, missing: Dict[str, str]) -> List[IOThread]:
        answer = await self._ask('query-iothreads')
        if any('busy-ns' not in entry for entry in answer):
            missing['busy times of IOThreads'] = NOT_OFFERED
        return [IOThread(entry['id'], entry.get('busy-ns'),
                         entry.get('poll-ns'), entry.get('idle-ns'),
                         entry.get('wakeups')) for entry in answer]

    # ---- disks

    async def _disks(self, missing: Dict[str, str]) -> List[Disk]:
        answer = await self._ask('query-blockstats')
        now = time.monotonic()
        disks = []
        for entry in answer:
            path = entry.get('qdev', '')
            if await self._is_ours(path):
                disks.append(disk_of(path, now, entry['stats']))
        for disk in disks:
            await self._read_plane(disk, missing)
        latency = await self._latency() if disks else {}
        if latency is None and not all(disk.latency for disk in disks):
            missing['latency p50, p99, max'] = NOT_OFFERED
        for disk in disks:
            for queue in disk.queues:
                queue.latency = (latency or {}).get((disk.path, queue.index),
                                                    {})
        return disks

    async def _latency(self) -> Optional[Dict[Tuple[str, int],
                                              Dict[str, Histogram]]]:
        """By the path of a disk, queue and kind; None if not offered."""
        try:
            answer = await self._ask('query-stats', {
                'target': TARGET, 'providers': [{'provider': PROVIDER}]})
        except Refused:
            return None
        return {(entry['qom-path'], entry['queue']): log2_histograms(entry)
                for entry in answer}

    async def _is_ours(self, path: str) -> bool:
        """False as well if it has just been unplugged."""
        if not path.endswith(BACKEND):
            return False
        try:
            return await self._get(path, 'type') == DISK_TYPE
        except Refused:
            return False

    async def _read_plane(self, disk: Disk, missing: Dict[str, str]) -> None:
        """What the data plane knows of a disk."""
        try:
            info = await self._get(disk.path, 'x-data-plane-info')
        except Refused:
            missing['queues, requests in flight'] = NOT_OFFERED
            return
        disk.queues_time = time.monotonic()
        disk.serving = info['serving']
        disk.reason = info.get('reason')
        disk.queues = [queue_of(entry) for entry in info['queues']]
        if not disk.queues:
            disk.missing['queues, latency p50, p99, max'] = (
                'it has no data plane' + (f' ({disk.reason})' if disk.reason
                                          else ''))
            return
        await self._read_oldest(disk, missing)

    async def _read_oldest(self, disk: Disk, missing: Dict[str, str]) -> None:
        """The oldest request of each queue that has any."""
        try:
            for queue in disk.queues:
                answer = await self._ask(
                    'x-query-virtio-blk-requests',
                    {'path': disk.path, 'queue': queue.index, 'limit': 1})
                queue.in_flight = answer['total']
                queue.oldest = oldest_of(answer)
        except NotOffered:
            missing['oldest request'] = NOT_OFFERED
        except Refused as error:
            disk.missing['oldest request'] = str(error).rstrip('.')


def oldest_of(answer: dict) -> Optional[Oldest]:
    """From the answer of x-query-virtio-blk-requests."""
    for entry in answer['requests']:
        return Oldest(entry['age-ns'], entry['stage'], entry.get('type'))
    return None


def queue_of(entry: dict) -> Queue:
    """From the answer of x-data-plane-info."""
    counters = {name: entry[name] for name in QUEUE_COUNTERS if name in entry}
    return Queue(entry['queue'], entry.get('iothread'), counters,
                 entry['in-flight'], entry.get('not-direct'),
                 bound=entry.get('moving-to'))


def log2_histograms(entry: dict) -> Dict[str, Histogram]:
    """Those in a StatsResult, by kind."""
    result = {}
    for stat in entry['stats']:
        if stat['name'].endswith(LATENCY):
            # The first interval ends at 1 ns, the last one does not.
            counts = tuple(stat['value'])
            bounds = (*(2.0 ** i for i in range(len(counts) - 1)), math.inf)
            result[stat['name'][:-len(LATENCY)]] = Histogram(bounds, counts)
    return result


def block_histogram(info: dict) -> Histogram:
    """From a BlockLatencyHistogramInfo."""
    return Histogram((*info['boundaries'], math.inf), tuple(info['bins']))


def disk_of(path: str, now: float, stats: dict) -> Disk:
    """From the answer of query-blockstats."""
    def by_kind(form: str) -> Dict[str, int]:
        return {name: stats[form.format(kind)] for kind, name in KINDS.items()
                if form.format(kind) in stats}

    latency = {}
    for kind, name in KINDS.items():
        info = stats.get(f'{kind}_latency_histogram')
        if info:
            latency[name] = block_histogram(info)
    return Disk(
        name=path[:-len(BACKEND)].rsplit('/', 1)[-1], path=path, time=now,
        operations=by_kind('{}_operations'),
        failed=by_kind('failed_{}_operations'),
        size={KINDS[kind]: stats[f'{kind}_bytes'] for kind in SIZED},
        time_ns=by_kind('{}_total_time_ns'), latency=latency)
