# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""The command line."""

import argparse
from typing import Optional, Sequence

from virtio_blk_top.program import add_options, checked, run
from virtio_blk_top.vm import close_all, open_all

from .balancer import Balancer, Wishes
from .policy import Rules

PROGRAM = 'virtio-blk-balance'

EPILOG = '''\
A VM is the path of a QMP socket that no other program uses (-qmp
unix:PATH,server=on,wait=off), or the name of a domain of libvirt.

A queue is moved if that makes the busiest IOThread less busy, by the hysteresis
at least. Each move is printed, with the busy shares from which it follows. What
an IOThread is busy with beside the queues is left where it is ("by others").
Without --once this goes on until the VM ends.
'''


def number(text: str, low: float, high: float) -> float:
    """:raise argparse.ArgumentTypeError: if it is not between these."""
    try:
        value = float(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f'give {low:g} to {high:g}')
    return value


def per_cent(text: str) -> float:
    """As a share."""
    return number(text, 1, 50) / 100


def moves(text: str) -> int:
    """How many a minute."""
    value = number(text, 1, 1000)
    if value != int(value):
        raise argparse.ArgumentTypeError('give a whole number')
    return int(value)


def thread_names(text: str) -> Sequence[str]:
    """At least two."""
    names = tuple(dict.fromkeys(name for name in text.split(',') if name))
    if len(names) < 2:
        raise argparse.ArgumentTypeError('give two or more, as in io0,io1')
    return names


def parse_args(words: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    rules = Rules()
    parser = argparse.ArgumentParser(
        prog=PROGRAM, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Move virtio-blk queues between the IOThreads of a VM '
        'until these are evenly busy.')
    parser.add_argument('vm', metavar='VM', help='a QMP socket or a domain')
    parser.add_argument('--once', action='store_true',
                        help='decide once, after one interval, and end')
    parser.add_argument('--dry-run', action='store_true',
                        help='print what would be moved; move nothing')
    parser.add_argument('--iothreads', metavar='ID,ID...', type=thread_names,
                        help='use only these, and only queues that are there '
                        '(default: all)')
    parser.add_argument('--hysteresis', metavar='PERCENT', type=per_cent,
                        default=rules.hysteresis,
                        help='of an IOThread\'s time, that moves must gain '
                        f'(default: {100 * rules.hysteresis:g})')
    parser.add_argument('--max-moves-per-minute', metavar='N', type=moves,
                        default=rules.per_minute,
                        help=f'(default: {rules.per_minute})')
    add_options(parser, interval=5)
    return checked(parser, parser.parse_args(words))


def wishes_of(args: argparse.Namespace) -> Wishes:
    """What the user wants."""
    rules = Rules(args.hysteresis, args.max_moves_per_minute,
                  1 if args.once else Rules.window)
    return Wishes(rules, args.iothreads, args.interval, args.dry_run)


def say(text: str) -> None:
    """At once, as a log is read while it grows."""
    print(text, flush=True)


async def work(args: argparse.Namespace) -> None:
    """:raise Trouble: if it cannot be done."""
    vms = await open_all([args.vm], args.connect, args.timeout)
    try:
        balancer = Balancer(vms[0], wishes_of(args), say)
        await (balancer.once() if args.once else balancer.run())
    finally:
        await close_all(vms)


def main(words: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    return run(PROGRAM, work(parse_args(words)))
