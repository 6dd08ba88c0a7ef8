# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What the guest says on its second serial port, as objects.

The words of a record are listed in inside/lib.sh. This module knows neither
QEMU nor what a good result is; that is report.py's business.
"""

import json
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple


@dataclass
class Check:
    """One thing that the guest looked at."""
    name: str
    passed: bool
    text: str


@dataclass
class Sample:
    """Checksum of a piece of the disk, as the guest read it."""
    offset: int
    length: int
    sha256: str


@dataclass
class DiskRecord:
    """All that the guest reported about one disk."""
    device: str = ''
    size: int = 0
    checks: List[Check] = field(default_factory=list)
    fio: Dict[str, dict] = field(default_factory=dict)
    samples: List[Sample] = field(default_factory=list)
    stat: List[int] = field(default_factory=list)


@dataclass
class GuestRecord:
    """All that the guest reported."""
    release: str = ''
    done: bool = False
    disks: Dict[str, DiskRecord] = field(default_factory=dict)
    #: records that could not be understood
    garbled: List[str] = field(default_factory=list)

    def disk(self, name: str) -> DiskRecord:
        """The record of this disk, made at its first mention."""
        return self.disks.setdefault(name, DiskRecord())

    def add(self, line: str) -> Optional[str]:
        """
        Takes one line in. Returns the line to show to the user as progress,
        if it has one.
        """
        word, _, rest = line.strip().partition(' ')
        handler = self._HANDLERS.get(word)
        if handler is None:
            self.garbled.append(line)
            return None
        try:
            return handler(self, rest)
        except (ValueError, IndexError):
            self.garbled.append(line)
            return None

    def _up(self, rest: str) -> str:
        self.release = rest
        return f'the guest runs Linux {rest}'

    def _disk(self, rest: str) -> str:
        name, device, size = rest.split()
        self.disk(name).device = device
        self.disk(name).size = int(size)
        return f'{name} is /dev/{device}, {int(size) >> 20} MiB'

    def _step(self, rest: str) -> str:
        name, number, total, text = rest.split(' ', 3)
        return f'{name}: {number}/{total} {text}'

    def _check(self, rest: str, passed: bool) -> Check:
        disk, name, text = rest.split(' ', 2)
        check = Check(name, passed, text)
        self.disk(disk).checks.append(check)
        return check

    def _pass(self, rest: str) -> None:
        self._check(rest, True)

    def _fail(self, rest: str) -> str:
        check = self._check(rest, False)
        return f'{rest.split()[0]}: FAILED: {check.text}'

    def _fio(self, rest: str) -> None:
        disk, job, text = rest.split(' ', 2)
        self.disk(disk).fio[job] = json.loads(text)['jobs'][0]

    def _sample(self, rest: str) -> None:
        disk, offset, length, sha256 = rest.split()
        self.disk(disk).samples.append(
            Sample(int(offset), int(length), sha256))

    def _stat(self, rest: str) -> None:
        disk, *numbers = rest.split()
        self.disk(disk).stat = [int(number) for number in numbers]

    def _done(self, _rest: str) -> None:
        self.done = True

    _HANDLERS = {
        'up': _up, 'disk': _disk, 'step': _step, 'pass': _pass,
        'fail': _fail, 'fio': _fio, 'sample': _sample, 'stat': _stat,
        'done': _done,
    }


def fio_rows(job: dict) -> List[Tuple[str, dict]]:
    """The directions of a fio job that did anything: ('read', {...})."""
    return [(way, job[way]) for way in ('write', 'read')
            if job.get(way, {}).get('total_ios', 0) > 0]
