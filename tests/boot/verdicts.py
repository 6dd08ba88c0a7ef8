# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Whether the data plane did what it should, while a firmware and then Linux used
a disk.

Pure: works on the objects that QMP returned and on the guest's own counts.
"""

from typing import Dict, Iterator, List, Optional

from report import guest_counts, served_counts, shortfalls, total


def since(before: Optional[dict], now: dict) -> Dict[str, int]:
    """What the plane served between two looks; since ever, without 'before'."""
    counts = served_counts(now)
    if before is not None:
        for request, count in served_counts(before).items():
            counts[request] -= count
    return counts


def starts_since(before: Optional[dict], now: dict) -> int:
    """How often the plane has started between two looks."""
    return now['starts'] - (before['starts'] if before else 0)


def firmware_reads(stat: List[int], served: Dict[str, int]) -> int:
    """
    What was read before Linux began to count. Before a reboot, the few reads
    of a shutdown are among it.
    """
    return served['reads'] - guest_counts(stat).get('reads', 0)


def boot_problems(before: Optional[dict], now: dict, stat: List[int],
                  at_least: int) -> Iterator[str]:
    """
    A disk that was booted from.

    :param before: what the plane said before the guest began to boot
    :param now:    what it says after the guest has booted
    :param stat:   the guest's /sys/block/DISK/stat, read before 'now'
    :param at_least: as many reads the firmware needs for kernel and initramfs
    """
    if not now['serving']:
        yield 'the data plane does not serve the disk ' \
              f'({now["state"]}: {now.get("reason", "no reason given")})'
    served = since(before, now)
    yield from shortfalls('the disk', stat, served)
    reads = firmware_reads(stat, served)
    if reads < at_least:
        yield f'the data plane served {reads} reads of the firmware, which ' \
              f'needs {at_least} and more'
    starts = starts_since(before, now)
    if starts < 2:
        yield f'the data plane started {starts} times, not for the firmware ' \
              'and for Linux'


def idle_queues(info: dict) -> List[int]:
    """Queues that have served nothing."""
    return [queue['queue'] for queue in info['queues']
            if queue['completed'] == 0]


def end_problems(info: dict) -> Iterator[str]:
    """What must hold once the guest has gone."""
    if total(info, 'in-flight'):
        yield f'{total(info, "in-flight")} requests never ended'
    if total(info, 'errors'):
        yield f'{total(info, "errors")} requests failed'
