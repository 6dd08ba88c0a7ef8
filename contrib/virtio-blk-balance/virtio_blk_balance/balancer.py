# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A VM that is read, and whose queues are moved.

Knows QEMU's command for that, and how all is told to the user.
"""

import asyncio
from dataclasses import dataclass
from typing import Callable, List, Optional, Tuple

from virtio_blk_top.errors import Ended, NotOffered, Refused, Trouble
from virtio_blk_top.text import share
from virtio_blk_top.vm import Vm, in_words

from .decision import Decision, Move
from .policy import Policy, Rules
from .sampling import observation_of

COMMAND = 'x-virtio-blk-set-queue-iothread'


@dataclass(frozen=True)
class Wishes:
    """
    names: the IOThreads to be used; None: all
    dry: nothing is moved
    """
    rules: Rules
    names: Optional[Tuple[str, ...]]
    interval: float
    dry: bool


def loads_in_words(decision: Decision) -> str:
    """How busy the IOThreads are."""
    words = []
    for name, load in sorted(decision.loads.items()):
        fixed = decision.fixed.get(name, 0.0)
        words.append(f'{name} {share(load)}'
                     + (f' ({share(fixed)} by others)' if fixed >= 0.005
                        else ''))
    return ', '.join(words)


def why_not(decision: Decision, rules: Rules) -> str:
    """Why no queue is moved."""
    text = f'no move: {decision.reason}'
    if decision.gain:
        text += (f' (gain {100 * decision.gain:.1f}%, hysteresis '
                 f'{100 * rules.hysteresis:g}%)')
    return text


class Balancer:
    """
    Of one VM.

    say: prints a line
    """

    def __init__(self, vm: Vm, wishes: Wishes, say: Callable[[str], None]):
        self._vm = vm
        self._wishes = wishes
        self._policy = Policy(wishes.rules)
        self._say = say
        self._said = ''
        self._lost: List[str] = []

    def _say_once(self, text: str, kind: str) -> None:
        """Unless it is of the same kind as what was said last."""
        if kind != self._said:
            self._say(text)
            self._said = kind

    async def run(self) -> None:
        """:raise Trouble: when the VM has ended, or cannot be balanced."""
        lost: List[str] = []
        while True:
            if await self.round() is None:
                self._say_once(f'cannot be read: {self._vm.problem}',
                               str(self._vm.problem))
            if self._lost and self._lost != lost:
                self._say(self._lost_in_words())
            lost = self._lost
            await asyncio.sleep(self._wishes.interval)

    async def once(self) -> None:
        """
        One decision.

        :raise Trouble: if that is not possible.
        """
        for number in range(self._wishes.rules.window + 1):
            if number:
                await asyncio.sleep(self._wishes.interval)
            decision = await self.round()
            if decision is None:
                raise Trouble(f'{self._vm.label}: {self._vm.problem}')
            if self._lost:
                raise Trouble(f'{self._vm.label}: {self._lost_in_words()}')
        if not self._said and decision and not decision.moves:
            self._say(why_not(decision, self._wishes.rules))

    async def round(self) -> Optional[Decision]:
        """
        Reads the VM, and makes the moves that are due; None if it cannot be
        read.
        """
        await self._vm.read()
        if self._vm.ended:
            raise Ended(f'{self._vm.label}: {self._vm.problem}')
        if self._vm.sample is None:
            return None
        self._check_names()
        now = observation_of(self._vm.sample, self._wishes.names)
        decision = self._policy.decide(now)
        if decision.moves:
            await self._make(decision, now.time)
        elif decision.loads:
            self._say_once(loads_in_words(decision) + '\n'
                           + why_not(decision, self._wishes.rules),
                           decision.reason)
        elif not now.running:
            self._say_once(why_not(decision, self._wishes.rules),
                           decision.reason)
        return decision

    def _check_names(self) -> None:
        """Finds out which IOThreads are not there."""
        assert self._vm.sample is not None
        there = {thread.name for thread in self._vm.sample.iothreads}
        self._lost = [name for name in self._wishes.names or ()
                      if name not in there]

    def _lost_in_words(self) -> str:
        return (f'there is no IOThread {", ".join(self._lost)}: see '
                'query-iothreads for those that exist')

    async def _make(self, decision: Decision, time: float) -> None:
        """Makes moves, or tells which it would make."""
        texts = [self._in_words(move) for move in decision.moves]
        if self._wishes.dry:
            self._say_once('\n'.join([loads_in_words(decision)]
                                     + ['would move ' + text
                                        for text in texts]),
                           str([(move.queue.key, move.target)
                                for move in decision.moves]))
            return
        self._say(loads_in_words(decision))
        self._said = ''
        for move, text in zip(decision.moves, texts):
            self._policy.moved(move.queue.key, time)
            if not await self._move(move, text):
                return          # the others count on it

    def _in_words(self, move: Move) -> str:
        """A move, and why."""
        assert self._vm.sample is not None
        name = {disk.path: disk.name
                for disk in self._vm.sample.disks}[move.queue.disk]
        changes = (f'{thread} {share(before)} -> {share(after)}'
                   for thread, before, after in zip(
                       (move.source, move.target), move.before, move.after))
        return (f'queue {move.queue.index} of {name} ({share(move.cost)}) to '
                f'{move.target}: {", ".join(changes)}')

    async def _move(self, move: Move, text: str) -> bool:
        """
        Returns whether QEMU does it.

        :raise Trouble: if it never will.
        """
        try:
            await self._vm.execute(COMMAND, {
                'path': move.queue.disk, 'queue': move.queue.index,
                'iothread': move.target})
        except NotOffered:
            raise Trouble(f'{self._vm.label}: this QEMU has no {COMMAND}: use '
                          'one with the virtio-blk data plane, or --dry-run'
                          ) from None
        except Ended as error:
            raise Ended(f'{self._vm.label}: {error}') from None
        except (Refused, Trouble) as error:
            self._say(f'cannot move {text.split(":")[0]}: {in_words(error)}')
            return False
        self._say(f'move {text}')
        return True
