# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A VM on paper, whose queues virtio-blk-balance's own policy moves.

Knows what QEMU would count, and what the policy cannot know: the real cost of
each queue, and who else uses an IOThread. Time goes on in intervals; nothing
waits.
"""

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / 'contrib' / name)
                for name in ('virtio-blk-balance', 'virtio-blk-top')]

# pylint: disable=wrong-import-position
from virtio_blk_balance.decision import Decision  # noqa: E402
from virtio_blk_balance.policy import (Observation, Policy, Queue,  # noqa: E402
                                       Rules, Thread)

Key = Tuple[str, int]
INTERVAL = 5.0
NS = 1_000_000_000
#: units of work for all of the time of an IOThread, at the usual price
UNITS = 1_000_000


@dataclass
class Subject:
    """
    A queue.

    load: the share of an IOThread that it wants, by the number of the interval
    price: of a unit of its work, as a multiple of the usual one
    """
    load: Callable[[int], float]
    home: str
    price: float = 1.0
    bound: str = ''
    done: float = 0.0


@dataclass(frozen=True)
class Made:
    """A move."""
    step: int
    key: Key
    source: str
    target: str


@dataclass
class World:
    """
    fixed: what others take of each IOThread
    noise: by which part costs change at random
    slow: a move takes an interval
    """
    fixed: Dict[str, float]
    queues: Dict[Key, Subject]
    rules: Rules = Rules()
    noise: float = 0.0
    slow: bool = False
    seed: int = 0
    step: int = 0
    made: List[Made] = field(default_factory=list)
    running: bool = True

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._policy = Policy(self.rules)
        self._busy = {name: 0.0 for name in self.fixed}
        self._age = {name: 0 for name in self.fixed}

    def wanted(self, name: str) -> float:
        """The share of an IOThread that is wanted at the moment."""
        return self.fixed[name] + sum(
            queue.load(self.step) for queue in self.queues.values()
            if queue.home == name)

    def loads(self) -> Dict[str, float]:
        """Of all."""
        return {name: self.wanted(name) for name in self.fixed}

    def worst(self) -> float:
        """Of the busiest."""
        return max(self.loads().values())

    def add_thread(self, name: str, fixed: float = 0.0) -> None:
        """As object-add does."""
        self.fixed[name], self._busy[name], self._age[name] = fixed, 0.0, 0

    def del_thread(self, name: str) -> None:
        """As a user does who has brought all queues elsewhere."""
        del self.fixed[name], self._busy[name], self._age[name]
        for queue in self.queues.values():
            if name in (queue.home, queue.bound):
                queue.home, queue.bound = sorted(self.fixed)[0], ''

    def elapse(self, stays: Sequence[Key] = ()) -> None:
        """An interval, at whose end moves do, but those of some queues."""
        for name in self.fixed:
            whole = self.wanted(name)
            # An IOThread that is wanted too much does part of the work.
            part = 1 / whole if whole > 1 else 1.0
            jitter = 1 + self.noise * self._chance.uniform(-1, 1)
            self._busy[name] += min(whole * part * jitter, 1.0)
            self._age[name] += 1
            for queue in self.queues.values():
                if queue.home == name:
                    queue.done += (queue.load(self.step) * part * UNITS
                                   / queue.price)
        for key, queue in self.queues.items():
            if queue.bound and key not in stays:
                queue.home, queue.bound = queue.bound, ''
        self.step += 1

    def observation(self) -> Observation:
        """What QEMU has counted."""
        return Observation(
            self.step * INTERVAL, self.running,
            {name: Thread(int(self._busy[name] * INTERVAL * NS),
                          int(self._age[name] * INTERVAL * NS))
             for name in self.fixed},
            {key: Queue(int(queue.done), queue.home, queue.bound)
             for key, queue in self.queues.items()})

    def tick(self) -> Decision:
        """An interval, and what is decided at its end."""
        self.elapse()
        decision = self._policy.decide(self.observation())
        for move in decision.moves:
            key = move.queue.key
            self._policy.moved(key, self.step * INTERVAL)
            self.made.append(Made(self.step, key, move.source, move.target))
            if self.slow:
                self.queues[key].bound = move.target
            else:
                self.queues[key].home = move.target
        return decision

    def run(self, steps: int,
            each: Optional[Callable[[], None]] = None) -> 'World':
        """So many intervals; each() is called at the end of each."""
        for _ in range(steps):
            self.tick()
            if each:
                each()
        return self


#
# Loads
#

def steady(share: float) -> Callable[[int], float]:
    """Always the same."""
    return lambda _step: share


def bursty(share: float, chance: random.Random) -> Callable[[int], float]:
    """On and off, for some intervals each."""
    period, phase = chance.randint(2, 40), chance.randint(0, 40)
    part = chance.uniform(0.2, 0.8) * period
    return lambda step: share if (step + phase) % period < part else 0.0


def spread(total: float, count: int, chance: random.Random,
           hot: float = 0.0) -> List[float]:
    """Random shares that add up to this; the first has at least "hot"."""
    parts = [chance.uniform(0.05, 1) for _ in range(count)]
    scale = (total - hot) / sum(parts)
    shares = [part * scale for part in parts]
    shares[0] += hot
    return shares


@dataclass(frozen=True)
class Kind:
    """
    What is common to generated worlds.

    level: how much of all IOThreads is wanted
    hot: the share of one IOThread that the first queue wants at least
    prices: work of each disk costs something else
    others: IOThreads have other users
    """
    threads: Tuple[int, int]
    queues: Tuple[int, int]
    level: Tuple[float, float] = (0.2, 0.8)
    hot: float = 0.0
    prices: bool = False
    others: bool = False
    bursts: bool = False
    noise: float = 0.02


def generate(kind: Kind, seed: int) -> World:
    """A world of this kind, whose queues are anywhere."""
    chance = random.Random(seed)
    names = [f'io{i}' for i in range(chance.randint(*kind.threads))]
    count = chance.randint(*kind.queues)
    disks = chance.randint(1, max(1, min(8, count // 2)))
    prices = [chance.uniform(0.5, 3) if kind.prices else 1.0
              for _ in range(disks)]
    shares = spread(chance.uniform(*kind.level) * len(names), count, chance,
                    kind.hot)
    some = chance.sample(names, chance.randint(1, len(names)))
    queues = {}
    for i, share in enumerate(shares):
        load = bursty(share, chance) if kind.bursts else steady(share)
        queues[f'disk{i % disks}', i // disks] = Subject(
            load, chance.choice(some), prices[i % disks])
    fixed = {name: chance.uniform(0, 0.3) if kind.others else 0.0
             for name in names}
    return World(fixed, queues, Rules(per_minute=chance.choice((6, 30, 30))),
                 noise=kind.noise, slow=bool(seed % 2), seed=seed)


def settle_steps(world: World) -> int:
    """Intervals in which each queue could have moved twice."""
    minutes = 2 * len(world.queues) / world.rules.per_minute + 1
    return int(minutes * 60 / INTERVAL) + 40
