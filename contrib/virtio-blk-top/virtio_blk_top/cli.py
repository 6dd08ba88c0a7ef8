# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""The command line."""

import argparse
import asyncio
import importlib
import json
from dataclasses import asdict
from typing import Any, Optional, Sequence

from .errors import Trouble
from .program import add_options, checked, run
from .rates import rows, thread_rows
from .vm import Vm, close_all, open_all, read_all

PROGRAM = 'virtio-blk-top'

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
    add_options(parser, interval=1)
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--once', action='store_true',
                      help='print one interval, and end')
    form.add_argument('--json', action='store_true',
                      help='the same, in JSON')
    form.add_argument('--openmetrics', nargs='?', const='', metavar='ADDR:PORT',
                      help='serve the counters to Prometheus (default: '
                      '127.0.0.1:9745)')
    return checked(parser, parser.parse_args(words))


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


def main(words: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    return run(PROGRAM, work(parse_args(words)))
