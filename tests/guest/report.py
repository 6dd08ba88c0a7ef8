# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What a run of the test guest means: the problems in it, and the printed report
that puts what the guest did beside what the data plane counted.

Pure: works on records and on the objects that QMP returned.
"""

from typing import Dict, Iterator, List, Optional, Tuple

from disks import Disk
from records import DiskRecord, GuestRecord, fio_rows

#: checks that each kind of test must have reported
FULL_CHECKS = ('random', 'mixed', 'sizes', 'batches', 'flush', 'discard',
               'write-zeroes', 'mkfs', 'copy', 'compare', 'e2fsck', 'serial')
READ_CHECKS = ('reads', 'samples')
#: what a disk with several queues adds to them
FULL_QUEUE_CHECKS = ('driver-queues', 'queues')
READ_QUEUE_CHECKS = ('driver-queues', 'queue-reads')
#: those of them that are jobs of fio, with results of their own
FIO_CHECKS = ('random', 'mixed', 'sizes', 'batches', 'queues', 'reads',
              'queue-reads')

#: request types of the plane that each kind of test must have caused
FULL_REQUESTS = ('reads', 'writes', 'flushes', 'discards', 'write-zeroes')
READ_REQUESTS = ('reads',)
ONLY_QUEUES_REQUESTS = ('reads', 'writes')

REQUESTS = ('reads', 'writes', 'flushes', 'discards', 'write-zeroes', 'other')

# Indices into /sys/block/*/stat, see Linux's Documentation/block/stat.rst.
STAT_READS, STAT_WRITES, STAT_DISCARDS, STAT_FLUSHES = 0, 4, 11, 15

PERCENTILES = (('50.000000', 'median'), ('99.000000', '99 %'),
               ('99.900000', '99.9 %'))

#: The guest's "writes" contain flushes without data (a sync with nothing to
#: write), which the device never sees as writes: some may be missing.
WRITES_SERVED = 0.9


def total(info: dict, counter: str) -> int:
    """The sum of a counter over a device's queues."""
    return sum(queue.get(counter, 0) for queue in info.get('queues', []))


def guest_counts(stat: List[int]) -> dict:
    """
    Requests by type as the guest's block layer counts them. Its writes
    contain write zeroes.
    """
    if len(stat) <= STAT_FLUSHES:
        return {}
    return {'reads': stat[STAT_READS], 'writes': stat[STAT_WRITES],
            'discards': stat[STAT_DISCARDS], 'flushes': stat[STAT_FLUSHES]}


def served_counts(info: dict) -> dict:
    """What the plane served, with guest_counts()'s names and meanings."""
    return {
        'reads': total(info, 'reads'),
        'writes': total(info, 'writes') + total(info, 'write-zeroes'),
        'discards': total(info, 'discards'),
        'flushes': total(info, 'flushes'),
    }


# ---- what is wrong

def wanted_checks(disk: Disk, only_queues: bool) -> Tuple[str, ...]:
    """The checks that the guest must have made on this disk."""
    queues = FULL_QUEUE_CHECKS if disk.full else READ_QUEUE_CHECKS
    if disk.queues == 1:
        queues = ()
    if only_queues and disk.full:
        return queues
    return (FULL_CHECKS if disk.full else READ_CHECKS) + queues


def disk_problems(disk: Disk, record: DiskRecord,
                  only_queues: bool = False) -> Iterator[str]:
    """What the guest's side of this disk shows."""
    reported = {check.name for check in record.checks}
    for name in wanted_checks(disk, only_queues):
        if name not in reported:
            yield f'{disk.name}: the check "{name}" was never reached'
    for check in record.checks:
        if not check.passed:
            yield f'{disk.name}: failed in the guest: {check.text}'
        elif check.name in FIO_CHECKS and check.name not in record.fio:
            yield f'{disk.name}: fio gave no results for "{check.name}"'
    for name, job in record.fio.items():
        if job.get('error'):
            yield f'{disk.name}: fio job "{name}" ended with error ' \
                  f'{job["error"]}'
        if job['read']['total_ios'] == 0:
            yield f'{disk.name}: fio job "{name}" read nothing back'


def queue_problems(disk: Disk, info: dict) -> Iterator[str]:
    """Each queue must have served requests, where it was to."""
    queues = {queue['queue']: queue for queue in info.get('queues', [])}
    for number in range(disk.queues):
        queue = queues.get(number, {})
        iothread = disk.iothreads[number % len(disk.iothreads)]
        if not queue.get('completed'):
            yield f'{disk.name}: queue {number} served no request'
        elif queue.get('iothread') != iothread:
            yield f'{disk.name}: queue {number} was served by ' \
                  f'{queue.get("iothread")}, not by {iothread}'


def wanted_requests(disk: Disk, only_queues: bool) -> Tuple[str, ...]:
    """Request types that the test must have caused on this disk."""
    if not disk.full:
        return READ_REQUESTS
    return ONLY_QUEUES_REQUESTS if only_queues else FULL_REQUESTS


def plane_problems(disk: Disk, record: DiskRecord, info: Optional[dict],
                   only_queues: bool = False) -> Iterator[str]:
    """Where the plane did not serve what the guest asked for."""
    if info is None:
        yield f'{disk.name}: this QEMU has no data plane'
        return
    if not info['serving']:
        reason = info.get('reason', 'no reason given')
        yield f'{disk.name}: the data plane does not serve it ' \
              f'({info["state"]}: {reason})'
    yield from queue_problems(disk, info)
    for request in wanted_requests(disk, only_queues):
        if total(info, request) == 0:
            yield f'{disk.name}: the data plane counted no {request}'
    yield from shortfalls(disk.name, record.stat, served_counts(info))


def shortfalls(name: str, stat: List[int], served: dict) -> Iterator[str]:
    """Where the guest counted more requests than the plane has served."""
    guest = guest_counts(stat)
    if not guest:
        yield f'{name}: the guest did not count its requests'
        return
    # Each flush may have had a write without data of its own; where several
    # shared one, there are many writes, too.
    guest['writes'] = min(int(guest['writes'] * WRITES_SERVED),
                          guest['writes'] - guest['flushes'])
    for request, count in guest.items():
        if served[request] < count:
            yield f'{name}: the guest made {count} {request}, of which ' \
                  f'the data plane served only {served[request]}'


def final_problems(disk: Disk, info: Optional[dict]) -> Iterator[str]:
    """What must hold once the guest has gone."""
    if info is None:
        return
    if total(info, 'in-flight'):
        yield f'{disk.name}: {total(info, "in-flight")} requests never ended'
    if total(info, 'errors'):
        yield f'{disk.name}: {total(info, "errors")} requests failed'


def stock_problems(disk: Disk, info: Optional[dict]) -> Iterator[str]:
    """With x-data-plane=off the plane must have stayed out of it."""
    if info is None:
        return
    if info['serving'] or info['starts']:
        yield f'{disk.name}: the data plane served it, although it was off'
    for request in REQUESTS:
        if total(info, request):
            yield f'{disk.name}: the data plane counted ' \
                  f'{total(info, request)} {request}, although it was off'


# ---- the printed report

def table(rows: List[Tuple[str, ...]], widths: Tuple[int, ...]) -> List[str]:
    """Rows with the first column to the left and the rest to the right."""
    lines = []
    for first, *rest in rows:
        line = f'  {first:<{widths[0]}}'
        for text, width in zip(rest, widths[1:]):
            line += f'{text:>{width}}'
        lines.append(line.rstrip())
    return lines


def microseconds(nanoseconds: Optional[float]) -> str:
    """A latency for the table."""
    if nanoseconds is None:
        return '-'
    return f'{nanoseconds / 1000:.0f}'


def fio_table(record: DiskRecord) -> List[str]:
    """IOPS and latencies of each job and direction."""
    heading = ('fio', 'IOPS', 'MiB/s',
               *(f'{name} us' for _, name in PERCENTILES), 'max us')
    rows: List[Tuple[str, ...]] = [heading]
    for name, job in record.fio.items():
        for way, result in fio_rows(job):
            latency = result.get('clat_ns', {}).get('percentile', {})
            rows.append((f'{name}, {way}', f'{result["iops"]:.0f}',
                         f'{result["bw_bytes"] / (1 << 20):.1f}',
                         *(microseconds(latency.get(key))
                           for key, _ in PERCENTILES),
                         microseconds(result.get('clat_ns', {}).get('max'))))
    return table(rows, (16, 8, 8, 11, 10, 11, 11))


def check_lines(record: DiskRecord) -> List[str]:
    """The verdict of each check."""
    return [f'  {"ok  " if check.passed else "FAIL"}  {check.text}'
            for check in record.checks]


QUEUE_LABELS = {
    'write-zeroes': 'write zeroes',
    'other': 'other (serial number)',
    'errors': 'failed',
    'merged': 'merged with a neighbour',
    'batches': 'batches',
    'kicks': 'available-buffer notifications',
    'polled': 'batches found by polling',
    'notifications-sent': 'used-buffer notifications sent',
    'notifications-suppressed': '  and suppressed',
}
QUEUE_COUNTERS = ('errors', 'merged', 'batches', 'kicks', 'polled',
                  'notifications-sent', 'notifications-suppressed')


def counter_table(record: DiskRecord, info: Optional[dict]) -> List[str]:
    """
    The guest's counts, where it reported them, in the first column; then one
    column per queue of the plane.
    """
    queues = (info or {}).get('queues', [])
    guest = guest_counts(record.stat)
    if guest:
        guest['write-zeroes'] = 'in writes'
    rows: List[Tuple[str, ...]] = [
        ('requests', 'guest' if guest else '',
         *(f'queue {queue["queue"]} ({queue.get("iothread", "main loop")})'
           for queue in queues))]
    for counter in REQUESTS + (QUEUE_COUNTERS if queues else ()):
        rows.append((QUEUE_LABELS.get(counter, counter),
                     str(guest.get(counter, '')),
                     *(str(queue.get(counter, 0)) for queue in queues)))
    return table(rows, (31, 11, *(18 for _ in queues)))


def disk_report(disk: Disk, record: DiskRecord, info: Optional[dict],
                stock: bool) -> List[str]:
    """The whole block about one disk."""
    lines = ['', f'Disk {disk.name}: {disk.describe()}, '
             f'{record.size >> 20} MiB, /dev/{record.device or "?"}, '
             f'{disk.describe_queues()}',
             '', ' What the guest did', *fio_table(record),
             *check_lines(record), '']
    if stock:
        lines.append(" What the data plane counted: nothing, QEMU's own path "
                     'served the disk')
    else:
        lines.append(' What the data plane counted')
    return lines + counter_table(record, info)


def shell_report(disk: Disk, info: Optional[dict],
                 stock: bool) -> List[str]:
    """After a session of --shell: only the plane has counted."""
    if stock:
        return ['', f"Disk {disk.name}: QEMU's own path served it"]
    return ['', f'Disk {disk.name}: what the data plane counted',
            *counter_table(DiskRecord(), info)]


def full_report(disks: List[Disk], guest: GuestRecord,
                infos: Dict[str, Optional[dict]], stock: bool) -> str:
    """All that is printed before the verdict."""
    lines: List[str] = []
    for disk in disks:
        lines += disk_report(disk, guest.disk(disk.name),
                             infos.get(disk.name), stock)
    return '\n'.join(lines)
