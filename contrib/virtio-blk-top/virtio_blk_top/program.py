# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
How a program begins, ends, and tells of trouble.

Knows the options that all programs have, and no others.
"""

import argparse
import asyncio
import os
import signal
import sys
from typing import Any, Coroutine, List

from .errors import Trouble
from .text import seconds

URI = 'qemu:///system'


def add_options(parser: argparse.ArgumentParser, interval: int) -> None:
    """interval: the default, in seconds"""
    parser.add_argument('--connect', metavar='URI', default=URI,
                        help=f'of libvirt (default: {URI})')
    parser.add_argument('--interval', metavar='SECONDS', default=str(interval),
                        help=f'between readings (default: {interval})')
    parser.add_argument('--timeout', metavar='SECONDS', default='5',
                        help='in which a VM has to answer (default: 5)')


def checked(parser: argparse.ArgumentParser,
            args: argparse.Namespace) -> argparse.Namespace:
    """What add_options() has added, as values."""
    for name in ('interval', 'timeout'):
        try:
            setattr(args, name, seconds(getattr(args, name)))
        except ValueError as error:
            parser.error(f'--{name}: {error}')
    return args


async def until_signal(work: Coroutine[Any, Any, None]) -> int:
    """Does the work; returns the exit status."""
    task = asyncio.ensure_future(work)
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


def run(name: str, work: Coroutine[Any, Any, None]) -> int:
    """
    name: of the program

    Returns the exit status.
    """
    try:
        status = asyncio.run(until_signal(work))
        sys.stdout.flush()
        return status
    except Trouble as error:
        print(f'{name}: {error}', file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads has seen enough; nothing is to be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
