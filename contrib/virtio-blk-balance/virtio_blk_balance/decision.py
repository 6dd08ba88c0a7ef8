# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Which queues to move, or why none.

A step takes a queue from an IOThread to the least busy one, and must leave both
less busy than the first was. Steps are made on paper until none is left.
The first of them that gain most are made, if that is the hysteresis at least:
by so much the IOThread they relieve most must be busier than it, and those that
take over from it, will be. Steps at the end that make little of that are left
out. So what was just moved does not move
back: for that, loads have to change by more than the hysteresis.

Nothing but arithmetic: knows no clock, and of no earlier decision.
"""

from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from .costs import Costs, Work, costs_of

#: a step that relieves nobody by more than this share of the time is none
LEAST = 1e-3
#: the part of the hysteresis that the last steps have to gain
TAIL = 0.5


@dataclass(frozen=True)
class Move:
    """
    A queue, and where it goes.

    cost: its share of an IOThread's time
    before, after: busy shares of source and target, as far as is known
    """
    queue: Work
    source: str
    target: str
    cost: float
    before: Tuple[float, float]
    after: Tuple[float, float]

    def gain(self) -> float:
        """By how much the busier of the two gets less busy."""
        return self.before[0] - max(self.after)


@dataclass
class Decision:
    """
    moves: in the order in which they are to be made
    reason: why there is none; the same words for the same reason
    loads: the busy share of each IOThread, when those that are on their way
        have arrived
    fixed: the part of it that no queue accounts for
    gain: the most that moves could, also those that were not allowed
    """
    moves: List[Move] = field(default_factory=list)
    reason: str = ''
    loads: Dict[str, float] = field(default_factory=dict)
    fixed: Dict[str, float] = field(default_factory=dict)
    gain: float = 0.0


def arrived(busy: Dict[str, float], queues: Sequence[Work],
            costs: Costs) -> Dict[str, float]:
    """The busy shares when what is on its way is there."""
    loads = dict(busy)
    for queue in queues:
        if queue.bound and queue.bound != queue.home:
            loads[queue.home] -= costs.of_queue[queue.key]
            if queue.bound in loads:
                loads[queue.bound] += costs.of_queue[queue.key]
    return loads


def step(loads: Dict[str, float], homes: Dict[Tuple[str, int], str],
         free: Sequence[Work], costs: Costs) -> Optional[Move]:
    """The one that gains most; of equals, of the busiest, the cheapest."""
    target = min(sorted(loads), key=lambda name: loads[name])
    best: Optional[Move] = None
    best_rank = (LEAST, 0.0, 0.0)
    for queue in free:
        source, cost = homes[queue.key], costs.of_queue[queue.key]
        # What move.gain() says, before there is a move.
        gain = loads[source] - max(loads[source] - cost, loads[target] + cost)
        rank = (gain, loads[source], -cost)
        if rank > best_rank and source != target:
            best_rank = rank
            best = Move(queue, source, target, cost,
                        (loads[source], loads[target]),
                        (loads[source] - cost, loads[target] + cost))
    return best


def steps(loads: Dict[str, float], queues: Sequence[Work],
          costs: Costs) -> Iterator[Move]:
    """All that make it better; a queue moves once at most."""
    loads = dict(loads)
    homes = {queue.key: queue.home for queue in queues}
    free = [queue for queue in queues if queue.free and not queue.bound]
    while True:
        move = step(loads, homes, free, costs)
        if move is None:
            return
        yield move
        loads[move.source], loads[move.target] = move.after
        free = [queue for queue in free if queue.key != move.queue.key]


def gain_of(moves: Sequence[Move], loads: Dict[str, float]) -> float:
    """
    By how much an IOThread is busier than it, and those that take over from
    it, will be; the most of all IOThreads.
    """
    after = dict(loads)
    takers: Dict[str, List[str]] = {}
    for move in moves:
        after[move.source], after[move.target] = move.after
        takers.setdefault(move.source, []).append(move.target)
    return max((loads[source] - max([after[source]] + [after[name]
                                                       for name in targets])
                for source, targets in takers.items()), default=0.0)


def worthwhile(moves: Sequence[Move], loads: Dict[str, float],
               hysteresis: float) -> Tuple[float, List[Move]]:
    """
    The most that is gained up to any of the moves; and the first ones that
    gain the hysteresis and about that much, or none.
    """
    gains = [gain_of(moves[:number + 1], loads)
             for number in range(len(moves))]
    most = max(gains, default=0.0)
    if most < hysteresis:
        return most, []
    enough = max(hysteresis, most - TAIL * hysteresis)
    number = next(i for i, gain in enumerate(gains) if gain >= enough)
    return most, list(moves[:number + 1])


def decide(busy: Dict[str, float], queues: Sequence[Work], hysteresis: float,
           limit: int) -> Decision:
    """
    busy: the share of its time that each IOThread to be used was busy
    queues: those whose home is one of these
    hysteresis: gain, as a share of the time, that is worth it
    limit: so many moves at most
    """
    costs = costs_of(busy, queues)
    loads = arrived(busy, queues, costs)
    decision = Decision(loads=loads, fixed=costs.fixed)
    if len(busy) < 2:
        decision.reason = 'there is no other IOThread to move to'
        return decision
    if not any(queue.free and not queue.bound for queue in queues):
        decision.reason = 'no queue can be moved'
        return decision
    moves = list(steps(loads, queues, costs))
    decision.gain, worth_it = worthwhile(moves, loads, hysteresis)
    if not moves:
        decision.reason = 'no move would make it more even'
    elif not worth_it:
        decision.reason = 'moves would gain less than the hysteresis'
    elif limit < 1:
        decision.reason = 'there were as many moves as a minute may have'
    else:
        decision.moves = worth_it[:limit]
    return decision
