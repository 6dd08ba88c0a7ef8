# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The live view, and the same as a plain table.

View is what is shown and what the keys do to that; it knows no terminal.
Keyboard is the terminal's other half. The cells of a table, and the order of
its rows, are functions of a row of rates.py.
"""

import asyncio
import os
import sys
import termios
import time
import tty
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from .errors import Trouble
from .rates import Row, ThreadRow, rows, thread_rows
from .text import amount, count, duration, seconds, share
from .vm import Readings, Vm

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError:
    raise Trouble('the Python module rich is missing: install python3-rich'
                  ) from None

#: width from which on all columns are shown
WIDE = 118
#: lines of notes at most, and of IOThreads at least if there are as many
NOTES, THREADS = 4, 3
#: of disks and VMs in a note
NAMES = 3

ESCAPES = {b'\x1b[A': 'up', b'\x1b[B': 'down', b'\x1b[5~': 'page-up',
           b'\x1b[6~': 'page-down', b'\x1bOA': 'up', b'\x1bOB': 'down'}

HELP = '''\
 q       quit
 < >     sort by the column on the left, on the right
 R       reverse the order
 H       queues, or disks
 c       the other columns, where there is no room for all
 i       hide what is idle
 d s     another interval: seconds, then Enter
 Space   read now
 arrows, Page Up, Page Down: scroll
 h ?     this help; any key ends it

 AVG P50 P99 MAX  latency       FLY     requests in flight
 OLDEST STAGE     of the oldest request, and how far it is
 BATCH            requests that were found in the queue at once
 KICK IRQ         notifications of the driver, interrupts, per request
 DIRECT           share of requests past the block layer's coroutines
 -                cannot be read, or nothing to count\
'''


@dataclass(frozen=True)
class Column:
    """
    One of a table.

    width: of its cells; 0 takes what is left
    cell: the text for a row
    key: what rows are sorted by
    falling: the largest first
    """
    title: str
    width: int
    cell: Callable[[Any], str]
    key: Callable[[Any], Any]
    falling: bool = True


def number(title: str, name: str, form: Callable[[Any], str],
           width: int = 6) -> Column:
    """A column of an attribute; what is unknown comes last."""
    def key(row: Any) -> float:
        value = getattr(row, name)
        return -1.0 if value is None else value
    return Column(title, width, lambda row: form(getattr(row, name)), key)


def quantile(title: str, name: str) -> Column:
    """A column of a latency."""
    def value(row: Row) -> Optional[float]:
        return getattr(row.latency, name) if row.latency else None

    def key(row: Row) -> float:
        found = value(row)
        return -1.0 if found is None else found
    return Column(title, 6, lambda row: duration(value(row)), key)


def words(title: str, name: str, width: int) -> Column:
    """A column of text."""
    def cell(row: Any) -> str:
        return getattr(row, name) or '-'
    return Column(title, width, cell, cell, falling=False)


def named(title: str, name: Callable[[Any], str]) -> Column:
    """The first column."""
    return Column(title, 0, name, name, falling=False)


def disk_name(row: Row, several: bool) -> str:
    """With the VM's if there are several, with the queue's number if any."""
    name = f'{row.vm}/{row.disk}' if several else row.disk
    return name if row.queue is None else f'{name} q{row.queue}'


def thread_name(row: ThreadRow, several: bool) -> str:
    """With the VM's if there are several."""
    return f'{row.vm}/{row.iothread}' if several else row.iothread


LOAD = (number('IOPS', 'iops', amount), number('MB/s', 'mbps', amount),
        number('AVG', 'average', duration), quantile('P50', 'p50'),
        quantile('P99', 'p99'), quantile('MAX', 'max'),
        number('FLY', 'in_flight', count, 4),
        number('OLDEST', 'oldest', duration), words('STAGE', 'stage', 9))
RING = (number('BATCH', 'batch', amount), number('KICK', 'kicks', amount),
        number('IRQ', 'interrupts', amount),
        number('DIRECT', 'direct', share), number('ERR/s', 'errors', amount),
        words('IOTHREAD', 'iothread', 10))
THREAD = (number('BUSY', 'busy', share, 5), number('POLL', 'poll', share, 5),
          number('IDLE', 'idle', share, 5),
          number('WAKE/s', 'wakeups', amount), number('QUEUES', 'queues', count)
          )


def table_of(columns: Sequence[Column], shown: Sequence[Any], sort: str,
             expand: bool) -> Table:
    """A table of some rows."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False,
                  expand=expand, header_style='reverse')
    for column in columns:
        title = Text(column.title)
        if column.title == sort:
            title.stylize('bold underline')
        size: Dict[str, Any] = ({'width': column.width} if column.width
                                else {'ratio': 1, 'min_width': 8})
        table.add_column(title, no_wrap=True, overflow='ellipsis',
                         justify='right' if column.falling else 'left', **size)
    for row in shown:
        table.add_row(*(Text(column.cell(row)) for column in columns))
    return table


def pair_rows(vms: Sequence[Vm], queues: bool) -> Tuple[List[Row],
                                                        List[ThreadRow]]:
    """Of all VMs that have two readings."""
    disks: List[Row] = []
    threads: List[ThreadRow] = []
    for vm in vms:
        if vm.sample and vm.before:
            disks += rows(vm.label, vm.sample, vm.before, queues)
            threads += thread_rows(vm.label, vm.sample, vm.before)
    return disks, threads


def causes_of(vm: Vm, several: bool) -> List[Tuple[str, str]]:
    """What cannot be read of a VM, and of what: '' is all that is shown."""
    prefix = f'{vm.label}/' if several else ''
    whole = vm.label if several else ''
    causes = []
    if vm.problem:
        causes.append((vm.problem, vm.label))
    if vm.sample:
        causes += [(f'{what}: {why}', whole)
                   for what, why in vm.sample.missing.items()]
        causes += [(f'{what}: {why}', prefix + disk.name)
                   for disk in vm.sample.disks
                   for what, why in disk.missing.items()]
    return causes


def notes_of(vms: Sequence[Vm]) -> List[str]:
    """What cannot be read, and why; a line for each cause."""
    causes: Dict[str, List[str]] = {}
    for vm in vms:
        for cause, name in causes_of(vm, len(vms) > 1):
            causes.setdefault(cause, []).append(name)
    notes = []
    for cause, names in causes.items():
        shown = ', '.join(names[:NAMES]) + (
            f' and {len(names) - NAMES} more' if len(names) > NAMES else '')
        notes.append(f'{shown}: {cause}' if shown else cause)
    return notes


@dataclass
class View:
    """
    What is shown.

    sort: title of the column; several: there is more than one VM
    done: the user wants to leave; prompt: what has been typed of a number
    """
    interval: float
    several: bool
    sort: str = 'IOPS'
    backwards: bool = False
    queues: bool = False
    other: bool = False
    hide_idle: bool = False
    help: bool = False
    offset: int = 0
    page: int = 1
    done: bool = False
    now: bool = False
    prompt: Optional[str] = None
    said: str = ''
    _columns: List[Column] = field(default_factory=list)

    # ---- keys

    def press(self, key: str) -> None:
        """Does what a key stands for."""
        self.said = ''
        if self.help:
            self.help = False
        elif self.prompt is not None:
            self._type(key)
        else:
            action = self._actions().get(key)
            if action:
                action()
            else:
                self.said = 'no such key: h shows them'

    def _actions(self) -> Dict[str, Callable[[], None]]:
        return {
            'q': self._quit, '\x03': self._quit,
            'h': lambda: self._set(help=True),
            '?': lambda: self._set(help=True),
            '<': lambda: self._sort_by(-1), '>': lambda: self._sort_by(1),
            'R': lambda: self._set(backwards=not self.backwards),
            'H': lambda: self._set(queues=not self.queues, offset=0),
            'c': lambda: self._set(other=not self.other),
            'i': lambda: self._set(hide_idle=not self.hide_idle, offset=0),
            'd': lambda: self._set(prompt=''),
            's': lambda: self._set(prompt=''),
            ' ': lambda: self._set(now=True),
            'up': lambda: self._scroll(-1), 'down': lambda: self._scroll(1),
            'page-up': lambda: self._scroll(-self.page),
            'page-down': lambda: self._scroll(self.page),
        }

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def _quit(self) -> None:
        self.done = True

    def _scroll(self, rows_: int) -> None:
        self.offset = max(0, self.offset + rows_)

    def _sort_by(self, step: int) -> None:
        titles = [column.title for column in self._columns]
        if titles:
            here = titles.index(self.sort) if self.sort in titles else 0
            self.sort = titles[(here + step) % len(titles)]
            self.backwards = False

    def _type(self, key: str) -> None:
        assert self.prompt is not None
        if key in ('\r', '\n'):
            self._take_interval(self.prompt)
            self.prompt = None
        elif key in ('\x7f', '\b'):
            self.prompt = self.prompt[:-1]
        elif key in ('\x1b', '\x03'):
            self.prompt = None
        elif len(key) == 1 and key.isprintable():
            self.prompt += key

    def _take_interval(self, text: str) -> None:
        try:
            self.interval = seconds(text)
        except ValueError as error:
            self.said = f'an interval: {error}'

    # ---- drawing

    def draw(self, vms: Sequence[Vm], width: int, height: int) -> Group:
        """All of the screen; no line is longer than it is wide."""
        if self.help:
            return Group(*(line_of(line, width)
                           for line in HELP.split('\n')[:height]))
        disks, threads = pair_rows(vms, self.queues)
        notes = [line_of(note, width) for note in notes_of(vms)]
        if len(notes) > NOTES:
            notes[NOTES - 1:] = [line_of(
                f'{len(notes) - NOTES + 1} more notes: see --once', width)]
        self._columns = self.columns(width)
        disks = self._ordered(disks)
        # Two lines of ours, and two headings
        room = max(1, height - 4 - len(notes))
        for_threads = min(len(threads), max(THREADS, room - len(disks)),
                          room - 1)
        self.page = max(1, room - for_threads)
        self.offset = min(self.offset, max(0, len(disks) - self.page))
        shown = disks[self.offset:self.offset + self.page]
        name = named('IOTHREAD', lambda row: thread_name(row, self.several))
        threads.sort(key=lambda row: -(row.busy or 0))
        return Group(
            self._heading(vms, disks, width),
            table_of(self._columns, shown, self.sort, expand=True),
            table_of((name, *THREAD), threads[:for_threads], '', expand=False),
            *(Text(note.plain, style='yellow', no_wrap=True)
              for note in notes),
            line_of(self._footer(len(disks), len(threads), for_threads),
                    width))

    def columns(self, width: int) -> List[Column]:
        """Those for which there is room."""
        name = named('QUEUE' if self.queues else 'DISK',
                     lambda row: disk_name(row, self.several))
        if width >= WIDE:
            return [name, *LOAD, *RING]
        return [name, LOAD[0], *(RING if self.other else LOAD[1:])]

    def _ordered(self, disks: List[Row]) -> List[Row]:
        if self.hide_idle:
            disks = [row for row in disks if row.iops or row.in_flight]
        column = next((column for column in self._columns
                       if column.title == self.sort), self._columns[0])
        disks.sort(key=lambda row: disk_name(row, True))
        disks.sort(key=column.key, reverse=column.falling != self.backwards)
        return disks

    def _heading(self, vms: Sequence[Vm], disks: Sequence[Row],
                 width: int) -> Text:
        total = sum(row.iops or 0 for row in disks)
        if len(vms) == 1:
            sample = vms[0].sample
            what = vms[0].label + (
                f': {sample.status}, QEMU {sample.version}' if sample else '')
        else:
            there = sum(vm.sample is not None for vm in vms)
            what = f'{there} of {len(vms)} VMs'
        return line_of(f'{time.strftime("%H:%M:%S")} {what}  '
                       f'{amount(total)} IOPS  every {self.interval:g} s',
                       width, 'bold')

    def _footer(self, disks: int, threads: int, shown_threads: int) -> str:
        if self.prompt is not None:
            return f'seconds between readings: {self.prompt}_'
        if self.said:
            return self.said
        hidden = []
        if disks > self.page:
            what = 'queues' if self.queues else 'disks'
            hidden.append(f'{disks - self.page} more {what}: arrows')
        if threads > shown_threads:
            hidden.append(f'{threads - shown_threads} more IOThreads')
        return ' '.join(['q quit  h help  < > sort  H queues  c columns',
                         *(f' ({text})' for text in hidden)])


def line_of(text: str, width: int, style: str = '') -> Text:
    """One line, cut if it is too long."""
    result = Text(text, style=style, no_wrap=True)
    result.truncate(width, overflow='ellipsis')
    return result


#
# The terminal
#

class Keyboard:
    """Use as 'with Keyboard(press)': each key is passed to press()."""

    def __init__(self, press: Callable[[str], None]):
        self._press = press
        self._fd = sys.stdin.fileno()
        self._saved: List[Any] = []

    def __enter__(self) -> 'Keyboard':
        self._saved = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def __exit__(self, *_exc: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)

    def _read(self) -> None:
        data = os.read(self._fd, 256)
        if not data:
            # The terminal has gone.
            self._press('q')
        for key in keys_of(data):
            self._press(key)


def keys_of(data: bytes) -> List[str]:
    """What a terminal sends, key by key; unknown sequences are no key."""
    result = []
    while data:
        known = next((code for code in ESCAPES if data.startswith(code)), None)
        if known:
            result.append(ESCAPES[known])
            data = data[len(known):]
        elif data[0] == 0x1b and len(data) > 1:
            break
        else:
            result.append(chr(data[0]))
            data = data[1:]
    return result


async def run(vms: Sequence[Vm], interval: float) -> None:
    """
    The live view, until the user leaves it.

    :raise Trouble: if there is no terminal, or when all VMs have ended.
    """
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        raise Trouble('the live view needs a terminal: use --once or --json')
    console = Console()
    view = View(interval, len(vms) > 1)
    changed = asyncio.Event()

    def press(key: str) -> None:
        view.press(key)
        changed.set()

    async with Readings(vms, changed.set) as readings:
        with Live(console=console, screen=True, auto_refresh=False) as live, \
                Keyboard(press):
            def draw() -> bool:
                live.update(view.draw(vms, *console.size), refresh=True)
                return not view.done and not all(vm.ended for vm in vms)

            while draw():
                readings.begin()
                await until_next(view, changed, draw)
    if not view.done:
        raise Trouble('; '.join(f'{vm.label}: {vm.problem}' for vm in vms))


async def until_next(view: View, changed: asyncio.Event,
                     draw: Callable[[], bool]) -> None:
    """
    Draws after each key and each reading, until the next reading is due or
    asked for, or draw() says that it is over.
    """
    begin = time.monotonic()
    view.now = False
    while draw() and not view.now:
        left = begin + view.interval - time.monotonic()
        if left <= 0:
            return
        # So that a change of the terminal's size is seen soon
        try:
            await asyncio.wait_for(changed.wait(), min(left, 1.0))
        except asyncio.TimeoutError:
            pass
        changed.clear()


#
# Once
#

def print_once(vms: Sequence[Vm]) -> None:
    """All tables, in full width, for people and for grep."""
    console = Console(width=max(WIDE, Console().width), highlight=False)
    several = len(vms) > 1
    view = View(1.0, several)
    for queues in (False, True):
        view.queues = queues
        disks, threads = pair_rows(vms, queues)
        if disks:
            console.print(table_of(view.columns(WIDE), disks, '', expand=False))
            console.print()
    if threads:
        name = named('IOTHREAD', lambda row: thread_name(row, several))
        console.print(table_of((name, *THREAD), threads, '', expand=False))
        console.print()
    for note in notes_of(vms):
        console.print(note, soft_wrap=True)
