#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Boots the test guest that prepare made, on the QEMU that scripts/build made,
and prints what the guest did beside what the data plane counted.

Not for users: scripts/guest checks the options, prepares everything and calls
this. Exit status: 0 all verified, 1 something did not hold, 2 cannot run.
"""

import argparse
import asyncio
import fcntl
import glob
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from typing import Dict, List, Optional

import disks
import report
from machine import Machine, MachineError, import_qmp
from records import GuestRecord

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
GUEST = os.path.join(ROOT, 'build', 'guest')
LOG = os.path.join(ROOT, 'build', 'log')
QEMU = os.path.join(ROOT, 'build', 'qemu', 'qemu-system-x86_64')
QEMU_IMG = os.path.join(ROOT, 'build', 'qemu', 'qemu-img')
QEMU_TREE = os.path.join(ROOT, 'build', 'tree')

#: hang guards, far beyond what any step takes
STEP_TIMEOUT = 600
PROBE_TIMEOUT = 30


class CannotRun(Exception):
    """The test could not even begin, in words for the user."""


def parse_arguments() -> argparse.Namespace:
    """scripts/guest has checked what the user typed."""
    parser = argparse.ArgumentParser(prog='run.py')
    parser.add_argument('--disk')
    parser.add_argument('--format', action='store_true')
    parser.add_argument('--read-only', action='store_true')
    parser.add_argument('--iothreads', type=int, default=1)
    parser.add_argument('--queues', type=int, default=1)
    parser.add_argument('--spread', action='store_true')
    parser.add_argument('--only-queues', action='store_true')
    parser.add_argument('--aio', default='threads')
    parser.add_argument('--accel', choices=('auto', 'tcg', 'kvm'),
                        default='auto')
    parser.add_argument('--stock', action='store_true')
    parser.add_argument('--shell', action='store_true')
    parser.add_argument('qemu_options', nargs='*')
    return parser.parse_args()


class Progress:
    """Prints lines with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """One line of progress."""
        seconds = time.monotonic() - self._start
        print(f'[{seconds:4.0f} s] {text}', flush=True)


def guest_command(accel: str, kernel_words: List[str],
                  cpus: int = 1) -> List[str]:
    """QEMU's command line without disks and ports, with CPUs at least."""
    cpus = max(cpus, min(2, os.cpu_count() or 1))
    return [
        QEMU, '-nodefaults', '-no-user-config', '-display', 'none',
        '-machine', 'q35', '-accel', accel,
        '-cpu', 'host' if accel == 'kvm' else 'max',
        '-m', '512M', '-smp', str(cpus),
        # The counters are read once more after the guest has gone.
        '-action', 'reboot=shutdown,shutdown=pause',
        '-kernel', os.path.join(GUEST, 'vmlinuz'),
        '-initrd', os.path.join(GUEST, 'initrd.img'),
        '-append', ' '.join(['console=ttyS0', 'loglevel=4', 'panic=-1',
                             *kernel_words]),
    ]


async def probe_kvm(qmp, run_dir: str) -> Optional[str]:
    """
    Boots the guest under KVM with nothing to do.

    :return: None if it works, else why not.
    """
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return '/dev/kvm is missing or not accessible'
    try:
        async with Machine(qmp, guest_command('kvm', ['dp.mode=probe']),
                           run_dir) as machine:
            while True:
                line = await machine.record_line(PROBE_TIMEOUT)
                if line.startswith('up '):
                    return None
    except MachineError as error:
        return textwrap.shorten(str(error), 100)


async def choose_accel(wanted: str, qmp, run_dir: str,
                       progress: Progress) -> str:
    """
    :raise CannotRun: when KVM was asked for and cannot run a guest.
    """
    if wanted == 'tcg':
        return 'tcg'
    if wanted == 'auto' and not os.path.exists('/dev/kvm'):
        progress.say('this host has no KVM: the guest runs under TCG')
        return 'tcg'
    progress.say('trying whether KVM runs a guest here')
    problem = await probe_kvm(qmp, run_dir)
    if problem is None:
        return 'kvm'
    if wanted == 'kvm':
        raise CannotRun(f'KVM cannot run a guest here ({problem}); '
                        'use --accel tcg')
    progress.say(f'KVM does not work ({problem}): the guest runs under TCG')
    return 'tcg'


def make_disks(options: argparse.Namespace, run_dir: str) -> List[disks.Disk]:
    """
    The user's disk first, then scratch disks: one per IOThread, or one for
    all of them.
    """
    result = []
    if options.disk:
        result.append(disks.open_user_disk(
            options.disk, QEMU_IMG, full=options.format,
            read_only=options.read_only
            or not (options.format or options.shell)))
    iothreads = [f'io{number}' for number in range(options.iothreads)]
    for number in range(len(result), 1 if options.spread else len(iothreads)):
        result.append(disks.make_scratch(f'd{number}', run_dir))
    for number, disk in enumerate(result):
        disk.iothreads = iothreads if options.spread else [iothreads[number]]
        disk.queues = options.queues
    return result


def full_command(options: argparse.Namespace, accel: str,
                 guest_disks: List[disks.Disk]) -> List[str]:
    """QEMU's command line with disks, IOThreads and the user's options."""
    full = ','.join(disk.name for disk in guest_disks if disk.full)
    read = ','.join(disk.name for disk in guest_disks if not disk.full)
    command = guest_command(accel, [
        f'dp.mode={"shell" if options.shell else "test"}',
        f'dp.full={full}', f'dp.read={read}', f'dp.queues={options.queues}',
        f'dp.only={"queues" if options.only_queues else ""}'],
        options.queues)
    for number in range(options.iothreads):
        command += ['-object', f'iothread,id=io{number}']
    for disk in guest_disks:
        command += disk.arguments(options.aio, options.stock)
    return command + options.qemu_options


async def read_infos(machine: Machine, guest_disks: List[disks.Disk]
                     ) -> Dict[str, Optional[dict]]:
    """What the plane says about each disk."""
    return {disk.name: await machine.plane_info(disk.name)
            for disk in guest_disks}


class TestRun:
    """One boot of the guest with its test, and what came of it."""

    def __init__(self, options: argparse.Namespace,
                 guest_disks: List[disks.Disk], progress: Progress):
        self._options = options
        self._disks = guest_disks
        self._progress = progress
        self.guest = GuestRecord()
        #: read while the guest still had its driver, and after its end
        self.infos: Dict[str, Optional[dict]] = {}
        self.last_infos: Dict[str, Optional[dict]] = {}
        self.problems: List[str] = []

    async def run(self, machine: Machine) -> None:
        """Follows the guest to its end. Problems are noted, not raised."""
        try:
            await self._follow(machine)
        except MachineError as error:
            self.problems.append(str(error))
            await self._last_look(machine)
        self._judge()

    async def _last_look(self, machine: Machine) -> None:
        """If QEMU still answers, the counters tell where requests stick."""
        try:
            self.infos = await read_infos(machine, self._disks)
        except (MachineError, OSError):
            pass

    async def _follow(self, machine: Machine) -> None:
        while not self.guest.done:
            line = await machine.record_line(STEP_TIMEOUT)
            shown = self.guest.add(line)
            if shown:
                self._progress.say(shown)
        self.infos = await read_infos(machine, self._disks)
        await machine.let_go()
        end = await machine.wait_shutdown(STEP_TIMEOUT)
        if not end.get('guest') or end.get('reason') != 'guest-shutdown':
            self.problems.append('the guest did not end by powering off: '
                                 f'{end.get("reason")}')
        self.last_infos = await read_infos(machine, self._disks)
        status = await machine.quit()
        if status != 0:
            self.problems.append(f'QEMU ended with status {status}')

    def _judge(self) -> None:
        found = self.problems
        for line in self.guest.garbled:
            found.append(f'the guest sent something strange: {line[:60]}')
        for disk in self._disks:
            record = self.guest.disk(disk.name)
            info = self.infos.get(disk.name)
            found.extend(report.disk_problems(disk, record,
                                              self._options.only_queues))
            if self._options.stock:
                found.extend(report.stock_problems(disk, info))
            elif self.guest.done:
                found.extend(report.plane_problems(
                    disk, record, info, self._options.only_queues))
            found.extend(report.final_problems(
                disk, self.last_infos.get(disk.name)))
            found.extend(self._sample_problems(disk))

    def _sample_problems(self, disk: disks.Disk) -> List[str]:
        """Compares what the guest read with what qemu-img reads."""
        if disk.full:
            return []
        samples = self.guest.disk(disk.name).samples
        wrong = [sample for sample in samples if sample.sha256 !=
                 disks.sample_checksum(disk, QEMU_IMG, sample.offset,
                                       sample.length)]
        self._progress.say(f'{disk.name}: {len(samples) - len(wrong)} of '
                           f'{len(samples)} samples agree with the image')
        return [f'{disk.name}: the guest read something else than the image '
                f'holds at byte {sample.offset}' for sample in wrong]


def keep_logs(run_dir: str) -> None:
    """After a failure: shows the console's end and keeps the logs."""
    os.makedirs(LOG, exist_ok=True)
    kept = tempfile.mkdtemp(prefix='guest.', dir=LOG)
    for name in ('console.log', 'qemu.log'):
        path = os.path.join(run_dir, name)
        if not os.path.exists(path):
            continue
        shutil.copy(path, kept)
        with open(path, encoding='utf-8', errors='replace') as log:
            lines = log.read().splitlines()[-20:]
        if lines:
            print(f'\nThe end of {name}:')
            print('\n'.join(f'  | {line}' for line in lines))
    print(f'\nThe whole logs are in {os.path.relpath(kept)}')


def print_verdict(run: TestRun, options: argparse.Namespace) -> int:
    """The last lines. Returns the exit status."""
    print()
    if run.problems:
        for problem in run.problems:
            print(f'FAILED: {problem}')
        return 1
    if options.stock:
        print("PASSED: everything verified on QEMU's own path; the data "
              'plane stayed out of it')
    else:
        print('PASSED: everything verified, and the data plane served every '
              'request')
    return 0


async def run_test(machine: Machine, options: argparse.Namespace,
                   guest_disks: List[disks.Disk], progress: Progress,
                   run_dir: str) -> int:
    """The test and its report. Returns the exit status."""
    run = TestRun(options, guest_disks, progress)
    await run.run(machine)
    print(report.full_report(guest_disks, run.guest,
                             run.last_infos or run.infos, options.stock))
    if run.problems:
        keep_logs(run_dir)
    return print_verdict(run, options)


async def run_shell(machine: Machine, options: argparse.Namespace,
                    guest_disks: List[disks.Disk]) -> int:
    """The terminal is the guest's until it ends. Returns the exit status."""
    try:
        await machine.wait_shutdown(None)
    except MachineError:
        # Left with the monitor's 'quit': nothing to ask any more.
        return 0
    infos = await read_infos(machine, guest_disks)
    status = await machine.quit()
    for disk in guest_disks:
        print('\n'.join(report.shell_report(disk, infos[disk.name],
                                            options.stock)))
    return status


async def run_guest(options: argparse.Namespace, run_dir: str) -> int:
    """Everything from the accelerator to the verdict."""
    qmp = import_qmp(QEMU_TREE)
    progress = Progress()
    guest_disks = make_disks(options, run_dir)
    accel = await choose_accel(options.accel, qmp, run_dir, progress)
    for disk in guest_disks:
        disks.try_aio(disk, QEMU_IMG, options.aio)
    path = "QEMU's own path" if options.stock else 'the data plane'
    count = ('one disk' if len(guest_disks) == 1
             else f'{len(guest_disks)} disks')
    progress.say(f'booting the guest: {accel}, {count} on {path}, '
                 f'aio={options.aio}')
    async with Machine(qmp, full_command(options, accel, guest_disks),
                       run_dir, options.shell) as machine:
        if options.shell:
            return await run_shell(machine, options, guest_disks)
        return await run_test(machine, options, guest_disks, progress,
                              run_dir)


def interrupt(_signal, _frame) -> None:
    """SIGTERM and SIGHUP end a run as ctrl-C does."""
    raise KeyboardInterrupt


def lock_run_dir(path: str) -> Optional[int]:
    """The open lock of a run's directory; None if its run still goes on."""
    lock = os.open(os.path.join(path, 'lock'), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def make_run_dir() -> str:
    """
    This run's own directory, locked until the process ends. Removes those
    that a killed run left behind.
    """
    for path in glob.glob(os.path.join(GUEST, 'run.*')):
        lock = lock_run_dir(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    # Under another name until it is locked, so that nobody takes it for left
    # behind.
    path = tempfile.mkdtemp(prefix='new.', dir=GUEST)
    lock_run_dir(path)
    final = os.path.join(GUEST, 'run.' + os.path.basename(path)[4:])
    os.rename(path, final)
    return final


def main() -> int:
    """Wraps the run in its temporary directory."""
    options = parse_arguments()
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    run_dir = make_run_dir()
    try:
        return asyncio.run(run_guest(options, run_dir))
    except (CannotRun, disks.DiskError, MachineError, OSError) as error:
        print(f'guest: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('guest: interrupted', file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main())
