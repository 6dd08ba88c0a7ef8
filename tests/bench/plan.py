# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Which runs there are and in which order: workloads, repetitions, and subjects
interleaved within each of them.

Pure: knows no process and no file.
"""

import random
from dataclasses import asdict, dataclass
from itertools import product
from typing import Iterator, List, Tuple

from options import QUICK_SECONDS, Options

#: what a run costs beside its own time, in seconds, and what fio's start does
RUN_OVERHEAD = 0.03
FIO_OVERHEAD = 0.6
#: start and end of a session, and of everything else, in seconds
SESSION_OVERHEAD = 1.0
OTHER_OVERHEAD = 8.0

QUICK_WARMUP_MS = 20
QUICK_TIMES_MS = (500, 400, 300, 250, 200, 150, 100, 75, 50)


@dataclass(frozen=True)
class Workload:
    """What the driver does in a run."""
    rw: str
    pattern: str
    bs: int
    depth: int
    wait: str
    write_percent: int = 30

    def kind(self) -> str:
        """All but the depth, for people."""
        how = {'poll': 'driver polls', 'notify': 'driver is notified'}
        rw = self.rw
        if rw == 'mixed':
            rw = f'mixed ({self.write_percent} % write)'
        return f'{self.pattern} {rw}, {size_text(self.bs)}, {how[self.wait]}'

    def title(self) -> str:
        """For people."""
        return f'{self.kind()}, depth {self.depth}'

    def to_json(self) -> dict:
        """For the file of results."""
        return asdict(self)


def size_text(size: int) -> str:
    """Bytes for people."""
    if size % (1 << 20) == 0:
        return f'{size >> 20} MiB'
    if size % 1024 == 0:
        return f'{size >> 10} KiB'
    return f'{size} B'


def workloads(options: Options) -> List[Workload]:
    """All that is asked for; depths, which are compared, lie together."""
    return [Workload(rw, pattern, bs, depth, wait, options.write_percent)
            for rw, pattern, bs, wait, depth
            in product(options.rw, options.pattern, options.bs, options.wait,
                       options.depth)]


def subject_order(subjects: List[str], seed: int, *where) -> List[str]:
    """
    The subjects in an order that looks like chance and is always the same for
    a place in the plan: no subject always follows the same other one, whose
    traces in caches or clock frequencies it would inherit.
    """
    order = list(subjects)
    random.Random(':'.join(map(str, (seed, *where)))).shuffle(order)
    return order


def rounds(options: Options) -> List[range]:
    """
    The repetitions that are made in the same sessions. Where a session's
    memory happens to lie makes large requests with O_DIRECT faster or slower
    by a half for all of its life, so that each repetition gets sessions of its
    own; not where there is no time for it, or where each session would first
    write the disk.
    """
    if options.quick or options.verify:
        return [range(options.repeat)]
    return [range(i, i + 1) for i in range(options.repeat)]


def schedule(loads: List[Workload], subjects: List[str], repetitions: range,
             seed: int, backend: str) -> Iterator[Tuple[int, Workload, str]]:
    """The runs on one backend, in their order: (repetition, load, subject)."""
    for repetition in repetitions:
        for number, load in enumerate(loads):
            for subject in subject_order(subjects, seed, backend, repetition,
                                         number):
                yield repetition, load, subject


def run_seconds(options: Options, subject_is_fio: bool) -> float:
    """How long one run takes, about."""
    overhead = FIO_OVERHEAD if subject_is_fio else RUN_OVERHEAD
    warmup = 0 if subject_is_fio else options.warmup_ms
    return (warmup + options.time_ms) / 1000 + overhead


def total_seconds(options: Options, loads: int,
                  subjects: List[List[str]]) -> float:
    """How long everything takes, about; subjects are those per backend."""
    seconds = OTHER_OVERHEAD
    for names in subjects:
        seconds += SESSION_OVERHEAD * len(names) * len(rounds(options))
        seconds += options.repeat * loads * sum(
            run_seconds(options, name == 'fio') for name in names)
    return seconds


def make_quick(options: Options, loads: int,
               subjects: List[List[str]]) -> bool:
    """
    Chooses time and number of the runs so that all fits into a minute. Rather
    shorter runs than fewer than five: the median and its spread need them.

    :return: False if there are too many kinds of runs.
    """
    options.warmup_ms = QUICK_WARMUP_MS
    for repeat in (5, 3):
        for time_ms in QUICK_TIMES_MS:
            if repeat == 5 and time_ms < 100:
                break
            options.repeat, options.time_ms = repeat, time_ms
            if total_seconds(options, loads, subjects) <= QUICK_SECONDS:
                return True
    return False
