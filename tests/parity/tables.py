# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What a row is, how it is run in all ways, and how two records are compared.
"""

import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple

from machine import GUARD
from subject import Subject, Templates, Tools, Way

THREADS = ('iothread', 'mapping')

#: how often a row is run before a difference counts
TRIES = 3


@dataclass(frozen=True)
class Row:
    """
    One row of the table.

    threads: with which IOThreads it is run
    moves: runs two QEMUs; each of them may have the plane
    """
    name: str
    run: Callable[[Subject], None]
    threads: Tuple[str, ...] = THREADS
    moves: bool = False


@dataclass(frozen=True)
class Excuse:
    """
    A text that may differ, in rows whose name matches.

    plane, stock: patterns of the whole text
    """
    row: str
    plane: str
    stock: str
    reason: str


EXCUSES = (
    Excuse(r'target .*', r'.*block device is in use by data plane',
           r'.*(Conflicts with use by|Permission conflict).*',
           'the same refusal; the plane tells who uses the disk'),
)


class Difference(Exception):
    """A row goes wrong."""


class Unlike(Difference):
    """What the plane shows is not what stock shows."""


def short(value: Any) -> str:
    """For one line."""
    text = repr(value)
    return text if len(text) < 400 else text[:397] + '...'


def find(plane: Any, stock: Any, where: str) -> Optional[tuple]:
    """The first difference: where, and both values."""
    if isinstance(plane, dict) and isinstance(stock, dict):
        for key in sorted(set(plane) | set(stock)):
            if key not in plane or key not in stock:
                return (f'{where}.{key}', plane.get(key, 'nothing'),
                        stock.get(key, 'nothing'))
            found = find(plane[key], stock[key], f'{where}.{key}')
            if found:
                return found
        return None
    if isinstance(plane, (list, tuple)) and isinstance(stock, (list, tuple)):
        for i, (left, right) in enumerate(zip(plane, stock)):
            found = find(left, right, f'{where}[{i}]')
            if found:
                return found
        if len(plane) != len(stock):
            i = min(len(plane), len(stock))
            return (f'{where}[{i}]', plane[i:i + 1], stock[i:i + 1])
        return None
    return None if plane == stock else (where, plane, stock)


class Comparison:
    """The records of one row, the plane's and stock's."""

    def __init__(self, row: Row, tools: Tools, used: Dict[Excuse, int]):
        self._row = row
        self._tools = tools
        self._used = used

    def _excused(self, plane: Any, stock: Any) -> bool:
        for excuse in EXCUSES:
            if all(re.fullmatch(pattern, str(text)) for pattern, text in (
                    (excuse.row, self._row.name), (excuse.plane, plane),
                    (excuse.stock, stock))):
                self._used[excuse] = self._used.get(excuse, 0) + 1
                return True
        return False

    def _same_image(self, name: str, plane: Subject, stock: Subject) -> bool:
        """Byte by byte; or else what a guest sees of them."""
        paths = [subject.path(name) for subject in (plane, stock)]
        content = []
        for path in paths:
            if os.path.isdir(path):
                content.append(folder(path))
            else:
                with open(path, 'rb') as image:
                    content.append(image.read())
        if content[0] == content[1]:
            return True
        if os.path.isdir(paths[0]):
            return False
        return subprocess.run(
            [self._tools.qemu_img, 'compare', '-q', '-U', *paths],
            stdin=subprocess.DEVNULL, timeout=GUARD, check=False
        ).returncode == 0

    def compare(self, plane: Subject, stock: Subject) -> None:
        """:raise Unlike: the first that there is."""
        last = 'the start'
        for left, right in zip(plane.record, stock.record):
            if left[0] != right[0]:
                raise Unlike(f'behind {last}: the plane has {short(left)},'
                                 f' stock has {short(right)}')
            if isinstance(left[1], dict) and '!files' in left[1]:
                for name in left[1]['!files']:
                    if not self._same_image(name, plane, stock):
                        raise Difference(f'the content of {name} differs')
            found = find(left[1], right[1], left[0])
            if found and not self._excused(*found[1:]):
                raise Unlike(
                    f'behind {last}: {found[0]}: the plane has '
                    f'{short(found[1])}, stock has {short(found[2])}')
            last = left[0] if left[0] != 'value' else f'value {left[1]}'
        if len(plane.record) != len(stock.record):
            raise Unlike(f'behind {last}, one of them did more')


def folder(path: str) -> List[tuple]:
    """Of a folder: its files with their content."""
    found = []
    for name in sorted(os.listdir(path)):
        with open(os.path.join(path, name), 'rb') as file:
            found.append((name, file.read()))
    return found


@dataclass
class Sum:
    """
    What has been compared.

    used: how often each excuse was needed
    served: how often it was looked at who serves the disk
    refused: what stock refuses
    """
    used: Dict[Excuse, int] = field(default_factory=dict)
    served: int = 0
    refused: List[str] = field(default_factory=list)


def judge(row: Row, tools: Tools, templates: Templates
          ) -> Tuple[Sum, List[str]]:
    """
    Runs a row until nothing differs, and returns what differed before.

    What a job reads, or which of two events comes first, depends on the host's
    scheduler, with the plane and without. The plane's own differences are
    there each time. A QEMU that crashes or hangs, and an image with other
    data, is not tried again.

    :raise Difference: when there is one each time.
    """
    differed: List[str] = []
    while True:
        try:
            return run_row(row, tools, templates), differed
        except Unlike as error:
            differed.append(str(error))
            if len(differed) == TRIES:
                raise


def run_row(row: Row, tools: Tools, templates: Templates) -> Sum:
    """
    A row in all ways.

    :raise Difference: when they do not agree.
    """
    total = Sum()
    for threads in row.threads:
        ways = [Way(plane, threads, target)
                for plane in ('off', 'auto')
                for target in (('off', 'auto') if row.moves else (plane,))]
        with Subject(tools, templates, ways[0]) as stock:
            attempt(row, stock)
            total.refused += stock.refusals()
            for way in ways[1:]:
                with Subject(tools, templates, way) as plane:
                    attempt(row, plane)
                    try:
                        Comparison(row, tools, total.used).compare(
                            plane, stock)
                    except Unlike as error:
                        raise Unlike(f'{way}: {error}') from None
                    total.served += plane.served
    return total


def attempt(row: Row, subject: Subject) -> None:
    """Runs it; what goes wrong is told with the way."""
    try:
        row.run(subject)
    except Exception as error:
        raise Difference(
            f'{subject.way}: {type(error).__name__} {error}; behind '
            f'{short(subject.record[-1:])}; {subject.fate()}') from error
