# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Decisions over time: what to wait for, and how much is too much.

A decision is about the last few observations, between which nothing was plugged
or moved. A queue that was moved is left alone for a while, which doubles each
time that it is moved again soon: if what was calculated of its disk is wrong,
its moves still get rare.

Knows no clock: observations tell their time.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Deque, Dict, List, Tuple

from .costs import Work
from .decision import Decision, decide

Key = Tuple[str, int]

MINUTE = 60.0
#: observations for which a queue is left alone after its first move, and how
#: many times that it has to stay for the next move to be a first one
REST, FORGET = 4, 16
#: the rest does not double any more
DOUBLINGS = 16


@dataclass(frozen=True)
class Thread:
    """Counters of an IOThread in ns; whole: the time that has passed for it."""
    busy: int
    whole: int


@dataclass(frozen=True)
class Queue:
    """
    work: a counter of its work
    home: the IOThread that serves it
    bound: where it is on its way to, or ''
    """
    work: int
    home: str
    bound: str = ''


@dataclass
class Observation:
    """
    time: in seconds
    running: whether the VM is
    queues: those that a plane serves
    """
    time: float
    running: bool
    threads: Dict[str, Thread]
    queues: Dict[Key, Queue]


@dataclass(frozen=True)
class Rules:
    """
    hysteresis: gain, as a share of the time, that is worth a move
    per_minute: so many moves at most
    window: intervals that a decision looks at
    """
    hysteresis: float = 0.05
    per_minute: int = 6
    window: int = 3


@dataclass
class Rest:
    """Of a queue, counted in observations."""
    moved_at: int
    length: int
    moves: int = 1


def same_place(one: Observation, other: Observation) -> bool:
    """Whether the IOThreads, the queues, and where these are, are the same."""
    return (one.threads.keys() == other.threads.keys()
            and {key: queue.home for key, queue in one.queues.items()}
            == {key: queue.home for key, queue in other.queues.items()})


def goes_back(now: Observation, before: Observation) -> bool:
    """Whether a counter does: it is another one of the same name."""
    return (any(thread.busy < before.threads[name].busy
                or thread.whole <= before.threads[name].whole
                for name, thread in now.threads.items())
            or any(queue.work < before.queues[key].work
                   for key, queue in now.queues.items()))


@dataclass
class Policy:
    """Of one VM, and a set of its IOThreads."""
    rules: Rules
    _seen: Deque[Observation] = field(default_factory=deque)
    _made: List[float] = field(default_factory=list)
    _rests: Dict[Key, Rest] = field(default_factory=dict)
    _count: int = 0

    def decide(self, now: Observation) -> Decision:
        """What to do after one more observation."""
        self._count += 1
        if not now.running:
            self._seen.clear()
            return Decision(reason='the VM does not run')
        if self._seen and (not same_place(now, self._seen[-1])
                           or goes_back(now, self._seen[-1])):
            self._seen.clear()
        self._seen.append(now)
        if len(self._seen) <= self.rules.window:
            return Decision(reason='waiting until enough was seen')
        before = self._seen.popleft()
        return decide(self._busy(now, before), self._work(now, before),
                      self.rules.hysteresis, self._left(now.time))

    def moved(self, key: Key, time: float) -> None:
        """A queue was told to move; or that was tried, and refused."""
        self._made.append(time)
        rest = self._rests.get(key)
        if rest and self._count <= rest.moved_at + (1 + FORGET) * rest.length:
            moves = rest.moves + 1
        else:
            moves = 1
        self._rests[key] = Rest(self._count,
                                REST << min(moves - 1, DOUBLINGS), moves)

    def _left(self, time: float) -> int:
        """How many moves this minute may have."""
        self._made = [made for made in self._made if made > time - MINUTE]
        return self.rules.per_minute - len(self._made)

    def _rested(self, key: Key) -> bool:
        rest = self._rests.get(key)
        return rest is None or self._count > rest.moved_at + rest.length

    @staticmethod
    def _busy(now: Observation, before: Observation) -> Dict[str, float]:
        """The busy share of each IOThread."""
        return {name: (thread.busy - before.threads[name].busy)
                / (thread.whole - before.threads[name].whole)
                for name, thread in now.threads.items()}

    def _work(self, now: Observation, before: Observation) -> List[Work]:
        """The queues that are on these IOThreads."""
        return [Work(key[0], key[1], queue.work - before.queues[key].work,
                     queue.home, queue.bound, self._rested(key))
                for key, queue in now.queues.items()
                if queue.home in now.threads]
