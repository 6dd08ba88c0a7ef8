#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What virtio-blk-balance decides: tables of small cases, and its policy over
thousands of generated loads in a simulator. No QEMU, no clock; what is random
depends on seeds alone.
"""

import math
import os
import statistics
import sys
import unittest
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Callable, Dict, List

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
from simulator import (INTERVAL, Kind, Subject, World,  # noqa: E402
                       generate, settle_steps, steady)
from virtio_blk_balance.costs import Work, costs_of  # noqa: E402
from virtio_blk_balance.decision import Decision, decide  # noqa: E402
from virtio_blk_balance.policy import (FORGET, MINUTE, REST,  # noqa: E402
                                       Rules)

HYSTERESIS = 0.05
A, B, C = 'io0', 'io1', 'io2'


def work(disk: str, index: int, amount: float, home: str, **more) -> Work:
    """A queue."""
    return Work(disk, index, amount, home, **more)


def plan(decision: Decision) -> List[tuple]:
    """Its moves, in short."""
    return [(*move.queue.key, move.target) for move in decision.moves]


class Costs(unittest.TestCase):
    """costs.py"""

    def check(self, busy: Dict[str, float], queues: List[Work],
              costs: List[float], fixed: Dict[str, float]) -> None:
        """What must come out, to a thousandth."""
        found = costs_of(busy, queues)
        for queue, cost in zip(queues, costs):
            self.assertAlmostEqual(found.of_queue[queue.key], cost, 3)
        for name, rest in fixed.items():
            self.assertAlmostEqual(found.fixed[name], rest, 3)

    def test_shares(self):
        """Queues of a disk pay by their work."""
        self.check({A: 0.8, B: 0.0},
                   [work('d', 0, 300, A), work('d', 1, 100, A)],
                   [0.6, 0.2], {A: 0, B: 0})

    def test_fixed(self):
        """A disk's work costs the same everywhere, the rest is somebody's."""
        self.check({A: 0.8, B: 0.2},
                   [work('d', 0, 100, A), work('d', 1, 100, B)],
                   [0.2, 0.2], {A: 0.6, B: 0})

    def test_idle_queues(self):
        """Who does no work costs nothing."""
        self.check({A: 0.5}, [work('d', 0, 0, A)], [0], {A: 0.5})

    def test_prices(self):
        """Each disk has its own price, as far as one can know."""
        self.check({A: 0.8, B: 0.2},
                   [work('d', 0, 100, A), work('e', 0, 100, B)],
                   [0.8, 0.2], {A: 0, B: 0})
        self.check({A: 0.8, B: 0.2},
                   [work('d', 0, 100, A), work('e', 0, 100, A),
                    work('d', 1, 100, B)],
                   [0.2, 0.6, 0.2], {A: 0, B: 0})

    def test_little_evidence(self):
        """A little work elsewhere tells no price, and never costs more."""
        self.check({A: 0.8, B: 0.001}, [work('d', 0, 100, A),
                                        work('d', 1, 10, B)],
                   [0.8, 0.001], {A: 0, B: 0})


@dataclass
class Case:
    """What decide() gets, and what must come out."""
    name: str
    busy: Dict[str, float]
    queues: List[Work]
    moves: List[tuple]
    reason: str = ''
    limit: int = 100


#: of a unit of work there are 1000 in all of an IOThread's time
CASES = (
    Case('one of two goes', {A: 0.8, B: 0},
         [work('d', 0, 400, A), work('d', 1, 400, A)], [('d', 0, B)]),
    Case('the better one goes', {A: 0.9, B: 0},
         [work('d', 0, 200, A), work('d', 1, 300, A), work('d', 2, 400, A)],
         [('d', 2, B)]),
    Case('to the least busy', {A: 0.6, B: 0.3, C: 0.1},
         [work('d', 0, 300, A), work('d', 1, 300, A), work('d', 2, 300, B),
          work('d', 3, 100, C)], [('d', 0, C)]),
    Case('who takes over may pass on', {A: 0.8, B: 0.3, C: 0.1},
         [work('d', 0, 400, A), work('d', 1, 400, A), work('d', 2, 300, B),
          work('d', 3, 100, C)], [('d', 0, C), ('d', 3, B)]),
    Case('a single hot queue stays', {A: 0.9, B: 0.1},
         [work('d', 0, 900, A), work('d', 1, 100, B)], [],
         'no move would make it more even'),
    Case('it is even', {A: 0.5, B: 0.5},
         [work('d', i, 250, (A, B)[i % 2]) for i in range(4)], [],
         'no move would make it more even'),
    Case('not worth it', {A: 0.54, B: 0.46},
         [work('d', 0, 500, A), work('d', 1, 40, A), work('d', 2, 460, B)], [],
         'moves would gain less than the hysteresis'),
    Case('worth it', {A: 0.57, B: 0.43},
         [work('d', 0, 500, A), work('d', 1, 70, A), work('d', 2, 430, B)],
         [('d', 1, B)]),
    Case('many small ones together are', {A: 0.4, B: 0},
         [work('d', i, 20, A) for i in range(20)],
         # The last ones would make little difference.
         [('d', i, B) for i in range(9)]),
    Case('as many as allowed', {A: 0.4, B: 0},
         [work('d', i, 20, A) for i in range(20)],
         [('d', 0, B), ('d', 1, B)], limit=2),
    Case('none is allowed', {A: 0.8, B: 0},
         [work('d', 0, 400, A), work('d', 1, 400, A)], [],
         'there were as many moves as a minute may have', limit=0),
    Case('what is fixed cannot move', {A: 0.9, B: 0.3},
         # 0.6 of A are somebody else's.
         [work('d', 0, 300, A), work('d', 1, 300, B)], [('d', 0, B)]),
    Case('what is fixed is not counted as a queue', {A: 0.9, B: 0.5},
         # Its queue is small, and all that can be gained.
         [work('d', 0, 100, A), work('d', 1, 500, B)], [('d', 0, B)]),
    Case('an idle queue stays', {A: 0.9, B: 0.1},
         [work('d', 0, 0, A), work('d', 1, 100, B)], [],
         'no move would make it more even'),
    Case('the next busiest is relieved', {A: 0.9, B: 0.6, C: 0},
         # Nothing of A can go.
         [work('e', 0, 900, A, free=False), work('d', 0, 300, B),
          work('d', 1, 300, B)], [('d', 0, C)]),
    Case('what is not free stays', {A: 0.8, B: 0},
         [work('d', 0, 400, A, free=False), work('d', 1, 400, A, free=False)],
         [], 'no queue can be moved'),
    Case('what is on its way counts where it goes', {A: 0.8, B: 0},
         [work('d', 0, 400, A, bound=B), work('d', 1, 400, A)], [],
         'no move would make it more even'),
    Case('what is on its way is left alone', {A: 0.9, B: 0, C: 0},
         [work('d', 0, 300, A, bound=B), work('d', 1, 600, A)], [],
         'no move would make it more even'),
    Case('what goes out of the set counts nowhere', {A: 0.8, B: 0.4},
         [work('d', 0, 400, A, bound='other'), work('d', 1, 400, A),
          work('d', 2, 400, B)], [], 'no move would make it more even'),
    Case('a single IOThread', {A: 0.8}, [work('d', 0, 400, A)], [],
         'there is no other IOThread to move to'),
    Case('no disk', {A: 0.8, B: 0}, [], [], 'no queue can be moved'),
)


class Decisions(unittest.TestCase):
    """decision.py"""

    def test_cases(self):
        """A table."""
        for case in CASES:
            with self.subTest(case.name):
                decision = decide(case.busy, case.queues, HYSTERESIS,
                                  case.limit)
                self.assertEqual(plan(decision), case.moves)
                self.assertEqual(decision.reason, case.reason)

    def test_explained(self):
        """A move tells the shares from which it follows."""
        move, = decide({A: 0.8, B: 0.1}, [work('d', 0, 300, A),
                                          work('d', 1, 500, A)],
                       HYSTERESIS, 1).moves
        for found, wanted in ((move.before, (0.8, 0.1)),
                              (move.after, (0.5, 0.4))):
            for one, other in zip(found, wanted):
                self.assertAlmostEqual(one, other)
        self.assertAlmostEqual(move.cost, 0.3)
        self.assertAlmostEqual(move.gain(), 0.3)

    def test_no_way_back(self):
        """Somebody takes less than the hysteresis: nothing moves back."""
        for percent in range(5, 95):
            queues = [work('d', 0, percent, A), work('d', 1, 5, A)]
            busy = {A: (percent + 5) / 100, B: 0.0}
            moves = plan(decide(busy, queues, HYSTERESIS, 9))
            homes = {(disk, index): to for disk, index, to in moves}
            after = [work(*queue.key, queue.work,
                          homes.get(queue.key, queue.home))
                     for queue in queues]
            for change in (A, B):
                busy = {name: sum(queue.work for queue in after
                                  if queue.home == name) / 100
                        for name in (A, B)}
                busy[change] += 0.99 * HYSTERESIS
                back = [key for *key, _ in plan(decide(busy, after, HYSTERESIS,
                                                       9))
                        if tuple(key) in homes]
                self.assertFalse(back, (percent, change))


class Policies(unittest.TestCase):
    """policy.py, and how the simulator uses it"""

    @staticmethod
    def world(loads: List[float], threads: int = 2, **more) -> World:
        """Queues of one disk, all on the first IOThread."""
        return World({f'io{i}': 0.0 for i in range(threads)},
                     {('d', i): Subject(steady(load), A)
                      for i, load in enumerate(loads)}, **more)

    def test_waits(self):
        """Nothing is decided before enough was seen, or between two places."""
        world = self.world([0.3, 0.3])
        for _ in range(3):
            self.assertIn('waiting', world.tick().reason)
        self.assertTrue(world.tick().moves)
        self.assertIn('waiting', world.tick().reason)

    def test_paused(self):
        """A VM that does not run, and what is counted when it does again."""
        world = self.world([0.3, 0.3]).run(2)
        world.running = False
        self.assertEqual(world.tick().reason, 'the VM does not run')
        world.running = True
        self.assertIn('waiting', world.run(2).tick().reason)
        self.assertTrue(world.tick().moves)

    def test_limit(self):
        """Never more moves in any minute than it may have."""
        for limit in (1, 3, 10):
            world = self.world([0.02] * 40, 4, rules=Rules(per_minute=limit))
            world.run(400)
            times = [made.step * INTERVAL for made in world.made]
            self.assertGreaterEqual(len(times), 20)
            for start in times:
                self.assertLessEqual(sum(start <= time < start + MINUTE
                                         for time in times), limit)

    def test_replug(self):
        """Counters that begin anew are another disk's."""
        world = self.world([0.3, 0.3]).run(2)
        world.queues['d', 0].done = 0
        self.assertIn('waiting', world.run(2).tick().reason)

    def test_stuck(self):
        """One that never arrives keeps the others from nothing."""
        world = self.world([0.3, 0.2, 0.2])
        world.queues['d', 0].bound = B

        def stays() -> None:
            world.queues['d', 0].home = A
            world.queues['d', 0].bound = B

        world.run(60, stays)
        self.assertNotIn(('d', 0), [made.key for made in world.made])
        self.assertEqual([world.queues['d', i].home for i in (1, 2)], [A, A])
        world.queues['d', 0].load = steady(0.01)
        world.run(60, stays)
        self.assertEqual(sorted(world.queues['d', i].home for i in (1, 2)),
                         [A, B])

    def test_adversary(self):
        """Where each move is wrong, moves get rare."""
        world = self.world([0.3, 0.1])

        def follow() -> None:
            # Somebody works wherever the first queue is.
            home = world.queues['d', 0].home
            world.fixed = {name: 0.5 if name == home else 0.0
                           for name in world.fixed}

        world.run(1000, follow)
        for key in world.queues:
            moves = sum(made.key == key for made in world.made)
            self.assertLessEqual(moves, most_moves(1000))
        self.assertGreater(len(world.made), 3)

    def test_threads_go_and_come(self):
        """What an IOThread leaves is taken over; a new one is used."""
        world = self.world([0.2, 0.2, 0.2, 0.2], 3).run(80)
        self.assertLess(world.worst(), 0.41)
        world.del_thread(C)
        world.run(80)
        self.assertLess(world.worst(), 0.41)
        world.add_thread('io7')
        world.add_thread('io8')
        world.run(80)
        self.assertLess(world.worst(), 0.21)


def most_moves(steps: int) -> float:
    """
    Of a queue in so many intervals: each rest is twice as long as the one
    before, unless it was quiet for long.
    """
    return (math.log2(steps / REST + 1) + 1
            + steps / (REST * (FORGET + 1)))


#
# Generated loads
#

@dataclass
class Outcome:
    """
    Of a world.

    before, after: the busiest IOThread at the start and the end
    even: what nobody can do better than
    late: moves after it should have settled
    returns: a queue came back to where it had been
    missed: what a move could gain in the end
    """
    seed: int
    before: float
    after: float
    even: float
    moves: int
    late: int
    returns: int
    missed: float
    queues: int
    threads: int


def missed(world: World) -> float:
    """
    The most that moving one queue would gain, by real costs, as far as QEMU
    can know: what an IOThread has no time for is not counted.
    """
    wanted = world.loads()
    loads = {name: min(load, 1.0) for name, load in wanted.items()}
    least = min(loads.values())
    gains = []
    for queue in world.queues.values():
        cost = queue.load(0) / max(wanted[queue.home], 1.0)
        gains.append(min(cost, loads[queue.home] - least - cost))
    return max(gains)


def returns(world: World) -> int:
    """How many queues came back."""
    been: Dict[tuple, set] = {}
    count = 0
    for made in world.made:
        places = been.setdefault(made.key, {made.source})
        count += made.target in places
        places.add(made.target)
    return count


def outcome(kind: Kind, seed: int) -> Outcome:
    """Of a world with steady load."""
    world = generate(kind, seed)
    before = world.worst()
    world.run(settle_steps(world))
    settled = len(world.made)
    world.run(100)
    loads = world.loads()
    even = max(sum(loads.values()) / len(loads), *world.fixed.values(),
               *(queue.load(0) for queue in world.queues.values()))
    return Outcome(seed, before, world.worst(), even, len(world.made),
                   len(world.made) - settled, returns(world), missed(world),
                   len(world.queues), len(loads))


def burst_outcome(kind: Kind, seed: int) -> tuple:
    """The busiest IOThread on average: without moves, with; most moves."""
    steps = 400
    alone, world = generate(kind, seed), generate(kind, seed)
    sums = [0.0, 0.0]
    for _ in range(steps):
        alone.step += 1
        world.tick()
        sums[0] += alone.worst()
        sums[1] += world.worst()
    return (*(part / steps for part in sums), max(
        (sum(made.key == key for made in world.made)
         for key in world.queues), default=0))


def churn_outcome(kind: Kind, seed: int) -> float:
    """IOThreads come and go; what a move could gain some time after each."""
    world = generate(kind, seed)
    world.noise = 0
    worst = 0.0
    for i in range(6):
        if i % 2:
            world.del_thread(sorted(world.fixed)[(seed + i) % 2])
        else:
            world.add_thread(f'new{i}')
        world.run(settle_steps(world) + 4 * REST)
        worst = max(worst, missed(world))
    return worst


def of_all(function: Callable, kind: Kind, count: int) -> List:
    """For so many seeds."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, [kind] * count, range(count),
                             chunksize=8))


class Generated(unittest.TestCase):
    """Thousands of worlds"""

    def check(self, kind: Kind, count: int, slack: float) -> List[Outcome]:
        """What holds for all; slack: for what noise and prices hide."""
        found = of_all(outcome, kind, count)
        for one in found:
            # No move that is worth it is left.
            self.assertLess(one.missed, HYSTERESIS + slack, one)
            # Nobody suffers, and nobody is moved about.
            self.assertLessEqual(one.after, one.before + 1e-6, one)
            self.assertLessEqual(one.moves, 2.5 * one.queues, one)
        return found

    def exact(self, kind: Kind, count: int) -> None:
        """Where costs can be known, without noise."""
        found = self.check(kind, count, 1e-3)
        for one in found:
            self.assertEqual(one.late, 0, one)
            # At first, one cannot know how much is wanted of a full IOThread.
            self.assertLessEqual(one.returns, 0 if one.before <= 1 else 2, one)
            self.assertLessEqual(one.moves, one.queues, one)
            # Of what no single move betters: 4/3 for two, less than 2 for all.
            self.assertLessEqual(
                one.after, (2 - 2 / (one.threads + 1)) * one.even
                + 2 * HYSTERESIS, one)
        self.assertLess(statistics.mean(one.after / one.even for one in found),
                        1.15)
        self.assertGreater(sum(one.moves for one in found), count)

    def test_steady(self):
        """Random shares."""
        self.exact(Kind((2, 6), (4, 24), noise=0), 500)

    def test_hot(self):
        """One queue takes half of an IOThread, at least."""
        self.exact(Kind((2, 4), (4, 12), (0.4, 0.7), hot=0.5, noise=0), 500)

    def test_many(self):
        """Many more queues than IOThreads."""
        self.exact(Kind((2, 8), (32, 64), noise=0), 60)

    def test_noise(self):
        """What is measured is never exact."""
        found = self.check(Kind((2, 6), (4, 24)), 300, 0.02)
        # What is about worth it may look so at last.
        for one in found:
            self.assertLessEqual(one.late, 2, one)
            self.assertLessEqual(one.returns, 0 if one.before <= 1 else 2, one)

    def test_unknown(self):
        """Each disk has a price, IOThreads have other users: none is known."""
        kind = Kind((2, 4), (6, 24), (0.2, 0.5), prices=True, others=True)
        found = self.check(kind, 300, 0.1)
        self.assertLess(statistics.mean(one.after / one.even for one in found),
                        1.15)
        self.assertLess(sum(one.late for one in found), 0.1 * len(found))

    def test_bursty(self):
        """Queues begin and end to work all the time."""
        found = of_all(burst_outcome, Kind((2, 4), (4, 16), bursts=True), 300)
        for *_, moves in found:
            self.assertLessEqual(moves, most_moves(400))
        self.assertLess(sum(one[1] for one in found),
                        0.9 * sum(one[0] for one in found))

    def test_churn(self):
        """IOThreads come and go."""
        for gain in of_all(churn_outcome, Kind((2, 4), (4, 12), (0.2, 0.4)),
                           60):
            self.assertLess(gain, HYSTERESIS + 0.005)


if __name__ == '__main__':
    unittest.main()
