# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What two readings of a VM make up, as rows.

None is what cannot be told: it was not read, or a counter went back, as after
an unplug and a plug. Knows neither QEMU nor how rows are shown.
"""

from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Optional

from .histogram import Histogram, add_up
from .reader import QUEUE_KINDS, Disk, IOThread, Queue, Sample


@dataclass
class Latency:
    """Nanoseconds."""
    p50: Optional[float]
    p99: Optional[float]
    max: Optional[float]


@dataclass
class Row:
    """
    A disk, or with "queue" one of its queues.

    iops: completed requests in a second, also failed ones; iops_of: by kind
    mbps: 10^6 bytes in a second
    average: mean latency, in ns
    latency: of all kinds; latency_of: by kind
    batch: requests that were found in the queue at once
    kicks, interrupts, direct: for one request
    """
    vm: str
    disk: str
    queue: Optional[int] = None
    iothread: Optional[str] = None
    serving: Optional[bool] = None
    iops: Optional[float] = None
    iops_of: Dict[str, Optional[float]] = field(default_factory=dict)
    mbps: Optional[float] = None
    average: Optional[float] = None
    latency: Optional[Latency] = None
    latency_of: Dict[str, Latency] = field(default_factory=dict)
    in_flight: Optional[int] = None
    oldest: Optional[int] = None
    stage: Optional[str] = None
    batch: Optional[float] = None
    kicks: Optional[float] = None
    interrupts: Optional[float] = None
    direct: Optional[float] = None
    errors: Optional[float] = None


@dataclass
class ThreadRow:
    """
    An IOThread.

    busy, poll, idle: shares of the time
    wakeups: in a second
    queues: how many it serves
    """
    vm: str
    iothread: str
    busy: Optional[float] = None
    poll: Optional[float] = None
    idle: Optional[float] = None
    wakeups: Optional[float] = None
    queues: int = 0


def growth(now: Optional[int], then: Optional[int]) -> Optional[int]:
    """By how much a counter has grown."""
    if now is None or then is None or now < then:
        return None
    return now - then


def ratio(value: Optional[float], base: Optional[float]) -> Optional[float]:
    """None where there is nothing to divide by."""
    return value / base if value is not None and base else None


def add(values: Iterable[Optional[int]]) -> Optional[int]:
    """The sum, of which no part may be missing."""
    present = list(values)
    if not present or None in present:
        return None
    return sum(value for value in present if value is not None)


def grown(now: Dict[str, int], then: Dict[str, int]) -> Dict[str,
                                                            Optional[int]]:
    """By how much each of some counters has."""
    return {name: growth(value, then.get(name)) for name, value in now.items()}


#
# Latency
#

def latency_of(histogram: Optional[Histogram]) -> Optional[Latency]:
    """None if nothing was completed, or nothing is known."""
    if histogram is None or not histogram.total:
        return None
    return Latency(histogram.quantile(0.5), histogram.quantile(0.99),
                   histogram.maximum())


def set_latency(row: Row, now: Dict[str, Histogram],
                then: Dict[str, Histogram]) -> None:
    """From histograms by kind."""
    new = {kind: value.since(then.get(kind)) for kind, value in now.items()}
    row.latency = latency_of(add_up(new.values()))
    for kind, histogram in new.items():
        latency = latency_of(histogram)
        if latency:
            row.latency_of[kind] = latency


def of_queues(disk: Disk) -> Dict[str, Histogram]:
    """The histograms of all queues of a disk together, by kind."""
    kinds = {kind for queue in disk.queues for kind in queue.latency}
    sums = {kind: add_up(queue.latency.get(kind) for queue in disk.queues)
            for kind in kinds}
    return {kind: value for kind, value in sums.items() if value is not None}


#
# Queues and disks
#

def set_ring(row: Row, counters: Dict[str, Optional[int]]) -> None:
    """What is counted where the ring is served."""
    get = counters.get
    completed = get('completed')
    row.batch = ratio(completed, get('batches'))
    row.kicks = ratio(get('kicks'), completed)
    row.interrupts = ratio(get('notifications-sent'), completed)
    row.direct = ratio(get('direct'), completed)


def queue_row(vm: str, disk: Disk, queue: Queue, before: Disk) -> Row:
    """A queue; before is its disk as it was."""
    row = Row(vm, disk.name, queue.index, queue.iothread, disk.serving,
              in_flight=queue.in_flight)
    if queue.oldest:
        row.oldest, row.stage = queue.oldest.age_ns, queue.oldest.stage
    then = {other.index: other for other in before.queues}.get(queue.index)
    if then is None:
        return row
    seconds = disk.queues_time - before.queues_time
    counters = grown(queue.counters, then.counters)
    row.iops = ratio(counters.get('completed'), seconds)
    row.iops_of = {kind: ratio(counters.get(kind), seconds)
                   for kind in QUEUE_KINDS}
    row.errors = ratio(counters.get('errors'), seconds)
    set_ring(row, counters)
    set_latency(row, queue.latency, then.latency)
    return row


def disk_row(vm: str, disk: Disk, before: Disk) -> Row:
    """A disk; before is it as it was."""
    threads = sorted({queue.iothread for queue in disk.queues
                      if queue.iothread})
    row = Row(vm, disk.name, None, ','.join(threads) or None, disk.serving,
              in_flight=disk.in_flight)
    if disk.oldest:
        row.oldest, row.stage = disk.oldest.age_ns, disk.oldest.stage
    seconds = disk.time - before.time
    operations = grown(disk.operations, before.operations)
    failed = add(grown(disk.failed, before.failed).values())
    done = add(operations.values())
    row.iops = ratio(add((done, failed)), seconds)
    row.iops_of = {kind: ratio(value, seconds)
                   for kind, value in operations.items()}
    row.mbps = ratio(add(grown(disk.size, before.size).values()),
                     seconds * 1e6)
    row.average = ratio(add(grown(disk.time_ns, before.time_ns).values()),
                        done)
    row.errors = ratio(failed, seconds)
    set_ring(row, sums_of_queues(disk, before))
    set_latency(row, of_queues(disk) or disk.latency,
                of_queues(before) or before.latency)
    return row


def sums_of_queues(disk: Disk, before: Disk) -> Dict[str, Optional[int]]:
    """By how much the counters of all queues together have grown."""
    def total(which: Disk, name: str) -> Optional[int]:
        return add(queue.counters.get(name) for queue in which.queues)

    names = {name for queue in disk.queues for name in queue.counters}
    return {name: growth(total(disk, name), total(before, name))
            for name in names}


def rows(vm: str, now: Sample, before: Sample, queues: bool) -> List[Row]:
    """The disks of a VM or, if so wanted, their queues."""
    then = {disk.path: disk for disk in before.disks}
    result = []
    for disk in now.disks:
        old = then.get(disk.path)
        if old is None:
            result.append(Row(vm, disk.name, serving=disk.serving))
        elif queues:
            result += [queue_row(vm, disk, queue, old)
                       for queue in disk.queues]
        else:
            result.append(disk_row(vm, disk, old))
    return result


#
# IOThreads
#

def thread_row(vm: str, now: IOThread, before: Optional[IOThread],
               seconds: float) -> ThreadRow:
    """An IOThread; its own times tell how much time has passed for it."""
    row = ThreadRow(vm, now.name)
    if before is None:
        return row
    busy = growth(now.busy_ns, before.busy_ns)
    poll = growth(now.poll_ns, before.poll_ns)
    idle = growth(now.idle_ns, before.idle_ns)
    whole = add((busy, poll, idle))
    row.busy, row.poll, row.idle = (ratio(part, whole)
                                    for part in (busy, poll, idle))
    row.wakeups = ratio(growth(now.wakeups, before.wakeups), seconds)
    return row


def thread_rows(vm: str, now: Sample, before: Sample) -> List[ThreadRow]:
    """The IOThreads of a VM."""
    then = {thread.name: thread for thread in before.iothreads}
    served = [queue.iothread for disk in now.disks for queue in disk.queues]
    result = []
    for thread in now.iothreads:
        row = thread_row(vm, thread, then.get(thread.name),
                         now.time - before.time)
        row.queues = served.count(thread.name)
        result.append(row)
    return result
