# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A VM that is read again and again, and may end meanwhile.

Knows when to connect and what to say when that fails.
"""

import asyncio
import os
from typing import (Any, Callable, Dict, Iterable, List, Optional, Tuple,
                    Union)

from .errors import Ended, Refused, Trouble
from .monitor import LibvirtMonitor, SocketMonitor, one_line
from .reader import Reader, Sample


class Vm:
    """
    One VM.

    label: what it is called; unique after open_all()
    problem: why there was nothing to be read the last time
    ended: it has, and is not looked for any more
    sample, before: the last two readings; None where there was a problem
    """

    def __init__(self, target: str, uri: str, patience: float):
        self.target = target
        self.label = target
        self.problem: Optional[str] = None
        self.ended = False
        self.sample: Optional[Sample] = None
        self.before: Optional[Sample] = None
        self._monitor: Union[SocketMonitor, LibvirtMonitor] = (
            SocketMonitor(target, patience) if is_path(target)
            else LibvirtMonitor(uri, target, patience))
        self._reader = Reader(self._monitor)
        self._is_open = False

    async def open(self) -> None:
        """:raise Trouble: if that is not possible."""
        await self._monitor.open()
        self._is_open = True
        try:
            name = await self._reader.start()
        except (Trouble, Refused, KeyError, TypeError) as error:
            await self.close()
            raise Trouble(f'{self.target}: {in_words(error)}') from None
        self.label = name or os.path.basename(self.target)

    async def close(self) -> None:
        """Is never an error."""
        self._is_open = False
        await self._monitor.close()

    async def read(self, again: bool = False) -> None:
        """
        Takes a sample, or says why not in "problem".

        again: looks for a VM that has ended, as another may have its place
        """
        if self.ended and not again:
            return
        label = self.label
        sample: Optional[Sample] = None
        try:
            if not self._is_open:
                await self.open()
                self.label = label
            sample = await self._reader.read()
            self.problem, self.ended = None, False
        except (Trouble, Refused, KeyError, TypeError) as error:
            self.problem = in_words(error).replace(f'{self.target}: ', '')
            self.ended = isinstance(error, Ended)
            await self.close()
        self.before, self.sample = self.sample, sample

    async def execute(self, command: str,
                      arguments: Optional[Dict[str, object]] = None) -> Any:
        """
        A command between two readings, see SocketMonitor.

        :raise Trouble: also if there is no connection at the moment.
        """
        if not self._is_open:
            raise Trouble(self.problem or 'there is no connection')
        return await self._monitor.execute(command, arguments)


def is_path(target: str) -> bool:
    """Whether it names a socket rather than a domain."""
    return '/' in target or os.path.exists(target)


def in_words(error: Exception) -> str:
    """What went wrong, in a line."""
    if isinstance(error, (KeyError, TypeError)):
        return f'QEMU answers what is not understood ({one_line(error)})'
    return one_line(error)


def make_unique(vms: Iterable[Vm]) -> None:
    """VMs with one name get their socket's, too."""
    seen: List[Vm] = list(vms)
    for vm in seen:
        if [other.label for other in seen].count(vm.label) > 1:
            vm.label = f'{vm.label} ({vm.target})'


async def open_all(targets: Iterable[str], uri: str,
                   patience: float) -> Tuple[Vm, ...]:
    """
    The VMs, to be closed by close_all().

    uri: of libvirt, for those that are no sockets
    patience: seconds in which they answer unless something is wrong

    :raise Trouble: if one of them is not there.
    """
    vms = tuple(Vm(target, uri, patience)
                for target in dict.fromkeys(targets))
    try:
        for vm in vms:
            await vm.open()
    except BaseException:
        await close_all(vms)
        raise
    make_unique(vms)
    return vms


async def close_all(vms: Iterable[Vm]) -> None:
    """The pair of open_all()."""
    await asyncio.gather(*(vm.close() for vm in vms))


class Readings:
    """
    Use as 'async with Readings(...)': readings that do not wait for each other,
    as a VM may hang.

    ready: is called after each
    """

    def __init__(self, vms: Iterable[Vm], ready: Callable[[], None]):
        self._vms = tuple(vms)
        self._ready = ready
        self._tasks: Dict[Vm, asyncio.Task] = {}

    async def __aenter__(self) -> 'Readings':
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def begin(self) -> None:
        """One more of each VM that is not being read."""
        for vm in self._vms:
            task = self._tasks.get(vm)
            if task and task.done():
                task.result()
            if not vm.ended and (task is None or task.done()):
                self._tasks[vm] = asyncio.ensure_future(vm.read())
                self._tasks[vm].add_done_callback(lambda _task: self._ready())


async def read_all(vms: Iterable[Vm], again: bool = False) -> None:
    """Takes a sample of each, all at once."""
    await asyncio.gather(*(vm.read(again) for vm in vms))
