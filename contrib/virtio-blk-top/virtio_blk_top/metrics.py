# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The counters of VMs for Prometheus, read when it asks.

What a QEMU does not offer is absent, not 0, and named in
virtio_blk_not_offered.
"""

import asyncio
import math
import socket
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence

from .errors import Trouble
from .histogram import Histogram
from .reader import QUEUE_KINDS, Disk, IOThread, Queue
from .vm import Vm

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import (CounterMetricFamily,
                                        GaugeMetricFamily,
                                        HistogramMetricFamily)
except ImportError:
    raise Trouble('the Python module prometheus_client is missing: install '
                  'python3-prometheus-client') from None

ADDRESS, PORT = '127.0.0.1', 9745
#: seconds after which a reading is given up
PATIENCE = 30.0

NS = 1e-9
DISK = ('vm', 'disk')
QUEUE = ('vm', 'disk', 'queue', 'iothread')
THREAD = ('vm', 'iothread')

COUNTER, GAUGE, HISTOGRAM = (CounterMetricFamily, GaugeMetricFamily,
                             HistogramMetricFamily)

#: name, kind, labels, help
FAMILIES = (
    ('virtio_blk_up', GAUGE, ('vm',), 'Whether the VM could be read'),
    ('virtio_blk_not_offered', GAUGE, ('vm', 'what'),
     'What cannot be read of the VM'),
    ('virtio_blk_requests', COUNTER, (*DISK, 'type'),
     'Requests that the block layer has completed'),
    ('virtio_blk_failed_requests', COUNTER, (*DISK, 'type'),
     'Requests that have failed in the block layer'),
    ('virtio_blk_bytes', COUNTER, (*DISK, 'type'), 'Bytes read and written'),
    ('virtio_blk_request_time_seconds', COUNTER, (*DISK, 'type'),
     'Time that all requests together have taken in the block layer'),
    ('virtio_blk_disk_latency_seconds', HISTOGRAM, (*DISK, 'type'),
     'Latency in the block layer, where a histogram was asked for'),
    ('virtio_blk_serving', GAUGE, DISK, 'Whether the data plane serves it'),
    ('virtio_blk_queue_requests', COUNTER, (*QUEUE, 'type'),
     'Requests of a queue that were completed'),
    ('virtio_blk_queue_errors', COUNTER, QUEUE,
     'Requests of a queue that were completed with an error'),
    ('virtio_blk_queue_batches', COUNTER, QUEUE,
     'Times that requests were found in the queue'),
    ('virtio_blk_queue_kicks', COUNTER, QUEUE,
     'Available buffer notifications'),
    ('virtio_blk_queue_polled', COUNTER, QUEUE,
     'Times that polling found requests'),
    ('virtio_blk_queue_interrupts', COUNTER, QUEUE,
     'Used buffer notifications'),
    ('virtio_blk_queue_merged', COUNTER, QUEUE,
     'Requests that were submitted together with another one'),
    ('virtio_blk_queue_direct', COUNTER, QUEUE,
     "Requests past the block layer's coroutines"),
    ('virtio_blk_queue_latency_seconds', HISTOGRAM, (*QUEUE, 'type'),
     'Latency from the queue to the driver'),
    ('virtio_blk_queue_in_flight', GAUGE, QUEUE,
     'Requests taken from the queue and not yet completed'),
    ('virtio_blk_queue_oldest_seconds', GAUGE, (*QUEUE, 'stage'),
     'Age of the oldest request in flight'),
    ('virtio_blk_iothread_seconds', COUNTER, (*THREAD, 'state'),
     'Time that the IOThread was busy, polled in vain, or was idle'),
    ('virtio_blk_iothread_wakeups', COUNTER, THREAD,
     'Times that the IOThread was woken up'),
)

#: counters of a queue as the reader names them, and the family of each
OF_QUEUE = (('errors', 'errors'), ('batches', 'batches'), ('kicks', 'kicks'),
            ('polled', 'polled'), ('notifications-sent', 'interrupts'),
            ('merged', 'merged'), ('direct', 'direct'))


class Families:
    """The metrics of one answer, as they are put together."""

    def __init__(self) -> None:
        self._all = {name: kind(name, text, labels=labels)
                     for name, kind, labels, text in FAMILIES}

    def __iter__(self) -> Iterator[Any]:
        """Those that have a value."""
        return (family for family in self._all.values() if family.samples)

    def put(self, name: str, labels: Iterable[object], value: float) -> None:
        """A value of a counter or of a gauge."""
        self._all['virtio_blk_' + name].add_metric(list(map(str, labels)),
                                                   value)

    def put_histogram(self, name: str, labels: Iterable[object],
                      histogram: Histogram) -> None:
        """
        A histogram of nanoseconds. Its sum is not known, and therefore not
        told.
        """
        buckets = []
        so_far = 0
        for bound, number in zip(histogram.bounds, histogram.counts):
            so_far += number
            text = '+Inf' if math.isinf(bound) else repr(bound * NS)
            buckets.append((text, so_far))
        if buckets and buckets[-1][0] != '+Inf':
            buckets.append(('+Inf', so_far))
        self._all['virtio_blk_' + name].add_metric(list(map(str, labels)),
                                                   buckets, sum_value=None)

    # ---- what there is

    def put_vm(self, vm: Vm) -> None:
        """All of a VM."""
        self.put('up', (vm.label,), vm.sample is not None)
        if vm.sample is None:
            return
        for what in vm.sample.all_missing():
            self.put('not_offered', (vm.label, what), 1)
        for disk in vm.sample.disks:
            self.put_disk(vm.label, disk)
        for thread in vm.sample.iothreads:
            self.put_thread(vm.label, thread)

    def put_disk(self, vm: str, disk: Disk) -> None:
        """A disk with its queues."""
        labels = (vm, disk.name)
        tables: Sequence[Any] = (
            ('requests', disk.operations, 1),
            ('failed_requests', disk.failed, 1),
            ('bytes', disk.size, 1), ('request_time_seconds', disk.time_ns, NS))
        for name, table, unit in tables:
            for kind, value in table.items():
                self.put(name, (*labels, kind), value * unit)
        for kind, histogram in disk.latency.items():
            self.put_histogram('disk_latency_seconds', (*labels, kind),
                               histogram)
        if disk.serving is not None:
            self.put('serving', labels, disk.serving)
        for queue in disk.queues:
            self.put_queue(labels, queue)

    def put_queue(self, disk: Sequence[str], queue: Queue) -> None:
        """A queue."""
        labels = (*disk, queue.index, queue.iothread or '')
        for kind in QUEUE_KINDS:
            if kind in queue.counters:
                self.put('queue_requests', (*labels, kind),
                         queue.counters[kind])
        for counter, name in OF_QUEUE:
            if counter in queue.counters:
                self.put('queue_' + name, labels, queue.counters[counter])
        for kind, histogram in queue.latency.items():
            self.put_histogram('queue_latency_seconds', (*labels, kind),
                               histogram)
        self.put('queue_in_flight', labels, queue.in_flight)
        if queue.oldest:
            self.put('queue_oldest_seconds', (*labels, queue.oldest.stage),
                     queue.oldest.age_ns * NS)

    def put_thread(self, vm: str, thread: IOThread) -> None:
        """An IOThread."""
        times: Dict[str, Any] = {'busy': thread.busy_ns, 'poll': thread.poll_ns,
                                 'idle': thread.idle_ns}
        for state, value in times.items():
            if value is not None:
                self.put('iothread_seconds', (vm, thread.name, state),
                         value * NS)
        if thread.wakeups is not None:
            self.put('iothread_wakeups', (vm, thread.name), thread.wakeups)


class Collector:
    """What prometheus_client asks, from threads of its own."""

    def __init__(self, vms: Sequence[Vm], loop: asyncio.AbstractEventLoop,
                 read: Callable[[], Any]):
        self._vms = vms
        self._loop = loop
        self._read = read

    def describe(self) -> List[Any]:
        """So that nothing is read before somebody asks."""
        return []

    def collect(self) -> List[Any]:
        """All metrics as of now."""
        async def read() -> List[Any]:
            await self._read()
            families = Families()
            for vm in self._vms:
                families.put_vm(vm)
            return list(families)

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(
            PATIENCE)


def address_of(text: str) -> tuple:
    """
    ADDR:PORT, of which either may be missing.

    :raise ValueError: if it is not that.
    """
    address, colon, port = text.rpartition(':')
    if not colon:
        address, port = ('', text) if text.isdigit() else (text, '')
    address = address.strip('[]') or ADDRESS
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f'{text}: give ADDR:PORT, such as {ADDRESS}:{PORT}')
    return address, int(port or PORT)


async def serve(vms: Sequence[Vm], where: str,
                read: Callable[[], Any]) -> None:
    """
    Answers Prometheus for ever.

    :raise Trouble: if the port cannot be had.
    """
    try:
        address, port = address_of(where)
    except ValueError as error:
        raise Trouble(str(error)) from None
    registry = CollectorRegistry()
    registry.register(Collector(vms, asyncio.get_running_loop(), read))
    try:
        start_http_server(port, address, registry)
    except socket.gaierror as error:
        raise Trouble(f'{address}: {error.strerror}') from None
    except OSError as error:
        raise Trouble(f'{address}:{port}: {error.strerror}: give '
                      '--openmetrics another ADDR:PORT') from None
    host = f'[{address}]' if ':' in address else address
    print(f'http://{host}:{port}/metrics', flush=True)
    await asyncio.Event().wait()
