# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What a queue takes of its IOThread's time, and what nothing can move.

QEMU counts the busy time of an IOThread and the work of a queue, but not who
of an IOThread's users took how much of its time. So each disk is given a price
of a unit of work, the same in all IOThreads: the highest ones with which no
IOThread would have been busy for longer than it was. What an IOThread was busy
beyond the price of its queues' work is fixed: others use it, too.

Nothing but arithmetic.
"""

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

#: a disk's work in an IOThread tells its price if it is this part, at least, of
#: its work in any; less would be noise
EVIDENCE = 0.2
#: when prices are good enough, and when to stop trying
CLOSE, ROUNDS = 1e-3, 100


@dataclass(frozen=True)
class Work:
    """
    A queue.

    disk: its path
    work: done in the time that is looked at, in any unit
    home: the IOThread that did it
    bound: where the queue is on its way to, or ''
    free: whether it may be moved
    """
    disk: str
    index: int
    work: float
    home: str
    bound: str = ''
    free: bool = True

    @property
    def key(self) -> Tuple[str, int]:
        """What it is known by."""
        return self.disk, self.index


@dataclass
class Costs:
    """
    Shares of the time.

    of_queue: by key
    fixed: of each IOThread, what no queue accounts for
    """
    of_queue: Dict[Tuple[str, int], float]
    fixed: Dict[str, float]


def work_of_disks(queues: Sequence[Work]) -> Dict[str, Dict[str, float]]:
    """The work of each disk in each IOThread where it has any."""
    table: Dict[str, Dict[str, float]] = {}
    for queue in queues:
        if queue.work > 0:
            row = table.setdefault(queue.disk, {})
            row[queue.home] = row.get(queue.home, 0.0) + queue.work
    return table


def spent(table: Dict[str, Dict[str, float]],
          prices: Dict[str, float]) -> Dict[str, float]:
    """What the work in each IOThread costs."""
    sums: Dict[str, float] = {}
    for disk, row in table.items():
        for thread, work in row.items():
            sums[thread] = sums.get(thread, 0.0) + prices[disk] * work
    return sums


def prices_of(busy: Dict[str, float],
              table: Dict[str, Dict[str, float]]) -> Dict[str, float]:
    """
    The price of each disk's work. In each round prices rise, or at first fall,
    as far as the tightest of the disk's IOThreads allows.
    """
    witnesses: Dict[str, List[str]] = {
        disk: [thread for thread, work in row.items()
               if work >= EVIDENCE * max(row.values())]
        for disk, row in table.items()}
    prices = {disk: 1.0 for disk in table}
    for _ in range(ROUNDS):
        sums = spent(table, prices)
        factors = {disk: min(busy[thread] / sums[thread]
                             if sums[thread] > 0 else 1.0
                             for thread in threads)
                   for disk, threads in witnesses.items()}
        prices = {disk: price * factors[disk]
                  for disk, price in prices.items()}
        if all(abs(factor - 1) < CLOSE for factor in factors.values()):
            break
    return prices


def costs_of(busy: Dict[str, float], queues: Sequence[Work]) -> Costs:
    """
    busy: the share of its time that each IOThread was busy
    queues: those whose home is one of these
    """
    table = work_of_disks(queues)
    prices = prices_of(busy, table)
    sums = spent(table, prices)
    # Where a disk has little work, its price is from elsewhere.
    shrink = {thread: min(1.0, busy[thread] / total) if total > 0 else 1.0
              for thread, total in sums.items()}
    of_queue = {queue.key: prices.get(queue.disk, 0.0) * max(queue.work, 0.0)
                * shrink.get(queue.home, 1.0) for queue in queues}
    fixed = dict(busy)
    for queue in queues:
        fixed[queue.home] -= of_queue[queue.key]
    return Costs(of_queue, {thread: max(rest, 0.0)
                            for thread, rest in fixed.items()})
