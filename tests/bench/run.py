#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Measures virtio-blk disks side by side and compares them: all runs in the order
of plan.py, progress meanwhile, and the table, the file of results and the
pictures at the end.

Not for users: scripts/bench builds everything and calls this.
"""

import dataclasses
import datetime
import json
import os
import signal
import statistics
import sys
import time
from typing import Dict, List, Optional, Tuple

import host
import options as command_line
import plan
import report
import selftest
import subjects
from images import ImageError
from lab import RESULTS, Lab
from options import Options, UsageError
from session import SessionError, last_lines
from subjects import Backend, Subject, SubjectError


class Failure(Exception):
    """The benchmark failed, in words for the user."""


# ---- progress

def clock(seconds: float) -> str:
    """A duration as 1:02."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02}'


class Progress:
    """One line that is rewritten on a terminal, a line per group elsewhere."""

    def __init__(self, total: int, expected: float):
        self._total = total
        self._expected = expected
        self._start = time.monotonic()
        self._done = 0
        self._group = ''
        self._tty = sys.stdout.isatty()

    def _left(self) -> str:
        elapsed = time.monotonic() - self._start
        left = self._expected
        if self._done:
            left = elapsed / self._done * (self._total - self._done)
        return f'{clock(elapsed)} elapsed, about {clock(left)} left'

    def show(self, group: str, detail: str) -> None:
        """The next run."""
        if self._tty:
            width = os.get_terminal_size(sys.stdout.fileno()).columns or 80
            text = (f'[{self._done + 1}/{self._total}] {self._left()}: '
                    f'{group}: {detail}')
            print(f'\r\033[K{text[:width - 1]}', end='', flush=True)
        elif group != self._group:
            print(f'[{self._done}/{self._total}] {self._left()}: {group}',
                  flush=True)
        self._group = group

    def done(self) -> None:
        """A run is over."""
        self._done += 1

    def end(self) -> None:
        """Leaves an empty line to write to."""
        if self._tty:
            print('\r\033[K', end='', flush=True)


# ---- measuring

class Bench:
    """All runs of one call."""

    def __init__(self, options: Options, lab: Lab, found: List[Subject],
                 backends: List[Backend]):
        self._options = options
        self._lab = lab
        self._loads = plan.workloads(options)
        self._backends = backends
        self._found = found
        self.notes: List[str] = []
        #: notes that come from the runs
        self.found_out: List[str] = []
        self._measured: Dict[str, List[Subject]] = {
            backend.name: self._who(backend) for backend in backends}

    def _who(self, backend: Backend) -> List[Subject]:
        those = []
        for subject in self._found:
            reason = subjects.left_out(subject, backend, self._options)
            if reason is None:
                those.append(subject)
            else:
                self.notes.append(f'{subject.name} is not measured on '
                                  f'{backend.name}: {reason}')
        return those

    def _names(self) -> List[List[str]]:
        return [[subject.name for subject in those]
                for those in self._measured.values()]

    def prepare(self) -> Tuple[int, float]:
        """
        Chooses what --quick leaves open.

        :return: how many runs there are, and how many seconds they take.
        """
        options, names = self._options, self._names()
        if options.quick and not plan.make_quick(options, len(self._loads),
                                                 names):
            raise UsageError(
                f'--quick: {len(self._loads)} workloads on '
                f'{len(self._backends)} backends do not fit into '
                f'{command_line.QUICK_SECONDS} s; ask for fewer of them')
        runs = options.repeat * len(self._loads) * sum(map(len, names))
        return runs, plan.total_seconds(options, len(self._loads), names)

    def measure(self, progress: Progress) -> List[report.Cell]:
        """All of it, backend by backend."""
        cells: List[report.Cell] = []
        for backend in self._backends:
            if self._measured[backend.name]:
                cells += self._measure_backend(backend, progress)
        return cells

    def _measure_backend(self, backend: Backend, progress: Progress
                         ) -> List[report.Cell]:
        cells = {load: report.Cell(backend.name, load.to_json(), load.title())
                 for load in self._loads}
        self._lab.warm(backend)
        for repetitions in plan.rounds(self._options):
            self._measure_round(backend, repetitions, cells, progress)
        return list(cells.values())

    def _measure_round(self, backend: Backend, repetitions: range,
                       cells: Dict[plan.Workload, report.Cell],
                       progress: Progress) -> None:
        """Repetitions in sessions of their own, opened in changing order."""
        by_name = {subject.name: subject
                   for subject in self._measured[backend.name]}
        those = [by_name[name] for name in plan.subject_order(
            list(by_name), self._options.seed, backend.name, repetitions[0])]
        where = f'starting on {backend.name}'
        try:
            with self._lab.sessions(backend, those) as sessions:
                for repetition, load, name in plan.schedule(
                        self._loads, list(by_name), repetitions,
                        self._options.seed, backend.name):
                    where = f'{name} on {backend.name}, {load.title()}'
                    progress.show(
                        f'{backend.name}, repetition {repetition + 1} of '
                        f'{self._options.repeat}', f'{name}, {load.title()}')
                    cells[load].add(name, self._lab.run(
                        sessions[name], load,
                        self._options.seed + repetition),
                        sessions[name].accel)
                    progress.done()
                for name, session in sessions.items():
                    where = f'{name} on {backend.name}, after all runs'
                    session.check_plane()
                    self._note(session.note, f'{name} on {backend.name}')
        except SessionError as error:
            progress.end()
            if error.subject:
                where = f'{error.subject} on {backend.name}, at its start'
            raise Failure(failure_text(where, error)) from error


    def _note(self, note: Optional[str], where: str) -> None:
        """What a session has to say, once."""
        text = f'{where}: {note}'
        if note is not None and text not in self.found_out:
            self.found_out.append(text)


def short(path: str) -> str:
    """A path as people would write it here."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith('..') \
        else os.path.abspath(path)


def failure_text(where: str, error: SessionError) -> str:
    """What failed, where, and what was said meanwhile."""
    lines = [f'{where}: {error}']
    if error.log:
        lines += [f'  | {line[:300]}' for line in last_lines(error.log, 5)]
        lines.append(f'  (from {short(error.log)})')
    return '\n'.join(lines)


# ---- results

def circumstances() -> dict:
    """The beginning of the document: as things are before the first run."""
    return {
        'format': report.FORMAT,
        'date': datetime.datetime.now().astimezone().isoformat(
            timespec='seconds'),
        'command': sys.argv[1:],
        'machine': host.machine(),
        'project': host.project(),
    }


def findings(options: Options, lab: Lab, found: List[Subject],
             notes: List[str], cells: List[report.Cell]) -> dict:
    """The rest of it."""
    names = [subject.name for subject in found]
    return {
        'options': dataclasses.asdict(options),
        'pin': lab.pin,
        'subjects': [subject.to_json() for subject in found],
        'reference': options.reference,
        'notes': notes,
        'cells': [cell.to_json(names, options.reference) for cell in cells],
    }


def verified(cells: List[report.Cell]) -> int:
    """How many blocks were compared in all runs."""
    return sum(run['verified'] for cell in cells
               for runs in cell.runs.values() for run in runs)


def save(document: dict, options: Options) -> str:
    """
    Writes the file of results.

    :return: its path.
    """
    path = options.json
    if path is None:
        os.makedirs(RESULTS, exist_ok=True)
        path = os.path.join(RESULTS,
                            time.strftime('%Y-%m-%dT%H%M%S.json'))
    with open(path, 'w', encoding='utf-8') as target:
        json.dump(document, target, indent=1)
        target.write('\n')
    if options.json is None:
        latest = os.path.join(RESULTS, 'latest.json')
        os.symlink(os.path.basename(path), latest + '.new')
        os.rename(latest + '.new', latest)
    return path


def present(document: dict) -> None:
    """The table, and all that is to be known beside it."""
    print(host.describe(document['machine']))
    for subject in document['subjects']:
        print(f"  {subject['name']}: {subject['version'] or subject['path']}"
              + ''.join(f', {entry}' for entry in subject['properties']))
    for note in document['notes']:
        print(f'note: {note}')
    print(report.table(document))


def draw(document: dict, options: Options) -> None:
    """The pictures, if they are wanted."""
    if options.plots is not None:
        # Takes a second, and is not always installed.
        import plots  # pylint: disable=import-outside-toplevel
        files = plots.draw(document, options.plots)
        print(f'{len(files)} pictures are in {options.plots}')


def show(options: Options) -> int:
    """--show: an earlier document. Returns the exit status."""
    try:
        with open(options.show, encoding='utf-8') as source:
            document = json.load(source)
        report.check_document(document)
        if options.reference_given:
            report.compare_again(document, options.reference)
    except (OSError, ValueError) as error:
        raise UsageError(f'--show {options.show}: {error}') from None
    present(document)
    draw(document, options)
    return 0


# ---- all of it

def check_outputs(options: Options) -> None:
    """
    Before anything is measured in vain.

    :raise HostError: when there is no way to write what is asked for.
    """
    for path, folder in ((options.json, os.path.dirname(options.json or '')),
                         (options.plots, options.plots)):
        if path is None:
            continue
        try:
            os.makedirs(folder or '.', exist_ok=True)
        except OSError as error:
            raise host.HostError(f'{folder}: {error.strerror}') from None
        if not os.access(folder or '.', os.W_OK) or os.path.isdir(path) \
                and path == options.json:
            raise host.HostError(f'{path} cannot be written; name another')


def measure(options: Options) -> int:
    """Everything from the subjects to the table. Returns the exit status."""
    check_outputs(options)
    document = circumstances()
    found, notes = subjects.find(options)
    names = [subject.name for subject in found]
    if options.reference not in names:
        raise UsageError(f'the reference {options.reference} is not there: '
                         'choose one of ' + ', '.join(names)
                         + ' with --reference')
    pin = host.choose_pin(options)
    notes += host.pin_notes(pin)
    with Lab(options, pin) as lab:
        bench = Bench(options, lab, found,
                      [lab.backend(name) for name in options.backends])
        runs, seconds = bench.prepare()
        notes += bench.notes
        print(f'{runs} runs, about {clock(seconds)} min', flush=True)
        progress = Progress(runs, seconds)
        try:
            cells = bench.measure(progress)
        finally:
            progress.end()
        notes += bench.found_out
        if options.disks > 1:
            notes.append(f'{options.disks} disks of each QEMU work at once, '
                         'each with the depth that is given')
        if options.verify:
            notes.append(f'{verified(cells)} blocks that were read were '
                         'verified, which takes time of the driver')
        document.update(findings(options, lab, found, notes, cells))
    path = save(document, options)
    present(document)
    print(f'\nresults: {short(path)}')
    draw(document, options)
    return 0


def driver_lines(loads: List[plan.Workload], runs: List[List[dict]]
                 ) -> List[str]:
    """The table of --measure-driver; runs are those of each load."""
    width = max(len(load.title()) for load in loads)
    lines = ['', ' ' * width + '  ns per request, driver',
             ' ' * width + ' median  least  whole    requests']
    for load, results in zip(loads, runs):
        own = [one['driver_ns_per_request'] for one in results]
        whole = statistics.median(1e9 / one['iops'] for one in results)
        lines.append(f'{load.title():{width}}{statistics.median(own):7.1f}'
                     f'{min(own):7.1f}{whole:7.1f}'
                     + str(sum(one['requests'] for one in results)).rjust(12))
    return lines + [
        '', 'driver: finding used requests, checking them, making new ones; the'
        ' median of the\nruns, and the least, which was disturbed least.',
        'whole: with the device, which is a stand-in within the same thread.',
        'Both counted the same number of requests in each run.']


def measure_driver(options: Options) -> int:
    """--measure-driver. Returns the exit status."""
    loads = plan.workloads(options)
    runs: List[List[dict]] = [[] for _ in loads]
    pin = host.choose_pin(options)
    with Lab(options, pin[:1]) as lab:
        try:
            with lab.driver_session() as session:
                for number in range(options.repeat):
                    for load, results in zip(loads, runs):
                        results.append(lab.run(session, load,
                                               options.seed + number))
        except SessionError as error:
            raise Failure(failure_text('the driver alone', error)) from error
    print(host.describe(host.machine()))
    for note in host.pin_notes(pin[:1]):
        print(f'note: {note}')
    print('\n'.join(driver_lines(loads, runs)))
    return 0


def needs(options: Options) -> str:
    """What scripts/bench has to provide before the runs, as words."""
    if options.show is not None:
        words = []
    elif options.measure_driver:
        words = ['driver']
    else:
        words = ['qemu', 'driver']
        if 'fio' in options.subjects and options.backends != ['null-co']:
            words.append('fio')
    if options.plots is not None:
        words.append('plots')
    return ' '.join(words)


def interrupt(_signal, _frame) -> None:
    """Ends the runs; a second signal must not keep us from cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(words: List[str]) -> int:
    """Returns the exit status."""
    only_needs = words[:1] == ['--needs']
    options = command_line.parse(words[1:] if only_needs else words)
    if only_needs:
        print(needs(options))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    if options.show is not None:
        return show(options)
    if options.self_test:
        return selftest.run()
    if options.measure_driver:
        return measure_driver(options)
    return measure(options)


def main() -> int:
    """Turns what went wrong into a line and an exit status."""
    try:
        return run(sys.argv[1:])
    except UsageError as error:
        command_line.complain(str(error))
        return 2
    except (host.HostError, ImageError, SubjectError) as error:
        print(f'bench: {error}', file=sys.stderr)
        return 2
    except Failure as error:
        print(f'bench: FAILED: {error}', file=sys.stderr)
        return 1
    except OSError as error:
        print(f'bench: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('bench: interrupted', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
