# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""The command line."""

import argparse
import asyncio
import importlib
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any, List, Optional, Sequence

from .errors import Trouble
from .rates import rows, thread_rows
from .text import seconds
from .vm import Vm, close_all, open_all, read_all

PROGRAM = 'virtio-blk-top'
URI = 'qemu:///system'

EPILOG = '''\
A VM is the path of a QMP socket that no other program uses (-qmp
unix:PATH,server=on,wait=off), or the name of a domain of libvirt. In the live
view, h shows the keys. What a QEMU does not offer is shown as "-" and named
below the tables. Nothing is changed in a VM.
'''


def parse_args(words: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, epilog=EPILOG,
        description='Show what the virtio-blk disks of VMs, their queues and '
        'IOThreads do.')
    parser.add_argument('vm', nargs='+', metavar='VM',
                        help='a QMP socket or a domain')
    parser.add_argument('--connect', metavar='URI', default=URI,
                        help=f'of libvirt (default: {URI})')
    parser.add_argument('--interval', metavar='SECONDS', default='1',
                        help='between readings (default: 1)')
    parser.add_argument('--timeout', metavar='SECONDS', default='5',
                        help='in which a VM has to answer (default: 5)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--once', action='store_true',
                      help='print one interval, and end')
    form.add_argument('--json', action='store_true',
                      help='the same, in JSON')
    form.add_argument('--openmetrics', nargs='?', const='', metavar='ADDR:PORT',
                      help='serve the counters to Prometheus (default: '
                      '127.0.0.1:9745)')
    args = parser.parse_args(words)
    for name in ('interval', 'timeout'):
        try:
            setattr(args, name, seconds(getattr(args, name)))
        except ValueError as error:
            parser.error(f'--{name}: {error}')
    return args


def as_json(vm: Vm) -> Any:
    """What --json prints of a VM."""
    if not vm.sample or not vm.before:
        return {'vm': vm.label, 'problem': vm.problem}
    both = (vm.label, vm.sample, vm.before)
    return {'vm': vm.label, 'status': vm.sample.status,
            'version': vm.sample.version,
            'disks': [asdict(row) for row in rows(*both, False)],
            'queues': [asdict(row) for row in rows(*both, True)],
            'iothreads': [asdict(row) for row in thread_rows(*both)],
            'missing': vm.sample.all_missing()}


async def two_readings(vms: Sequence[Vm], interval: float) -> None:
    """:raise Trouble: if there is no VM of which there are two."""
    await read_all(vms)
    await asyncio.sleep(interval)
    await read_all(vms)
    if not any(vm.sample and vm.before for vm in vms):
        raise Trouble('; '.join(f'{vm.label}: {vm.problem}' for vm in vms))


def module(name: str) -> Any:
    """
    One that needs more of Debian's packages than others.

    :raise Trouble: if these are not there.
    """
    return importlib.import_module(f'.{name}', __package__)


async def work(args: argparse.Namespace) -> None:
    """:raise Trouble: if it cannot be done."""
    if args.openmetrics is not None:
        await export(args)
        return
    screen = None if args.json else module('screen')
    vms = await open_all(args.vm, args.connect, args.timeout)
    try:
        if args.json:
            await two_readings(vms, args.interval)
            print(json.dumps([as_json(vm) for vm in vms], indent=1))
        elif args.once:
            await two_readings(vms, args.interval)
            screen.print_once(vms)
        else:
            await screen.run(vms, args.interval)
    finally:
        await close_all(vms)


async def export(args: argparse.Namespace) -> None:
    """Answers one question at a time."""
    metrics = module('metrics')
    vms = await open_all(args.vm, args.connect, args.timeout)
    lock = asyncio.Lock()

    async def read() -> None:
        async with lock:
            await read_all(vms, again=True)

    try:
        await metrics.serve(vms, args.openmetrics, read)
    finally:
        await close_all(vms)


async def until_signal(args: argparse.Namespace) -> int:
    """Does the work; returns the exit status."""
    task = asyncio.ensure_future(work(args))
    loop = asyncio.get_running_loop()
    signals: List[int] = []

    def stop(number: int) -> None:
        signals.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        return 128 + signals[0]
    return 0


def main(words: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    args = parse_args(words)
    try:
        status = asyncio.run(until_signal(args))
        sys.stdout.flush()
        return status
    except Trouble as error:
        print(f'{PROGRAM}: {error}', file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads has seen enough; nothing is to be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
