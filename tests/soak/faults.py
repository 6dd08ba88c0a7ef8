# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Faults that are planted, and must be noticed: a test that cannot fail shows
nothing.

Each of these finds a machine with a raw image whose driver is at work, and
breaks something.
"""

import os
from dataclasses import dataclass
from typing import Callable

from groups import Second, both
from machine import CONFIGS, MIB, Machine, SoakError
from memory import Balloon, VirtioMem, elsewhere
from remote import RECONNECT, Daemon, cut, start_mirror
from scenarios import (finish_job, move_queues, pivot, start_job, wait_job,
                       wait_ready)

BLOCK = 4096

#: raw, so that the disk's blocks are where they are in the file
CONFIG = next(config for config in CONFIGS if config.form == 'raw')
#: seconds after which a request counts as lost, for once
STALL = 3


@dataclass(frozen=True)
class Fault:
    """
    words: what the complaint must have in it
    remote: it needs another host
    """
    name: str
    words: str
    plant: Callable[[Machine], None]
    remote: bool = False


def image(vm: Machine) -> str:
    """The file of the disk."""
    return vm.nodes[vm.top]['file']['filename']


def patch(path: str, start: int, data: bytes) -> None:
    """Changes a file behind QEMU's back."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.pwrite(handle, data, start)
    finally:
        os.close(handle)


def read(path: str, start: int, size: int) -> bytes:
    """A part of a file."""
    with open(path, 'rb') as source:
        source.seek(start)
        return source.read(size)


def lost_kicks(vm: Machine) -> None:
    """The device is not told of new requests any more."""
    vm.driver.cmd('drop-kicks', 1 << 30)
    vm.progress(1 << 30)


def lost_irqs(vm: Machine) -> None:
    """The driver is not told of ended requests any more."""
    vm.driver.cmd('drop-irqs', 1 << 30)
    vm.progress(1 << 30)


def lost_irqs_moved(vm: Machine) -> None:
    """The same, while queues move, which kicks them."""
    vm.driver.cmd('drop-irqs', 1 << 30)
    move_queues(vm)


def old_disk(vm: Machine) -> None:
    """All that was written since a moment is lost."""
    vm.driver.cmd('quiesce')
    before = read(image(vm), 0, 16 * MIB)
    vm.resume(1000)
    vm.driver.cmd('quiesce')
    patch(image(vm), 0, before)
    vm.driver.cmd('verify')


def lost_by_kill(vm: Machine) -> None:
    """QEMU is killed, and one that was completed is not in the image."""
    before = vm.copy('before')
    vm.resume(1000)
    vm.nodes[vm.top]['file']['filename'] = before
    vm.crash()
    vm.driver.cmd('verify')


def wrong_byte(vm: Machine) -> None:
    """One byte of the disk is another."""
    vm.driver.cmd('quiesce')
    place = vm.chance.randrange(16 * MIB)
    patch(image(vm), place, bytes([read(image(vm), place, 1)[0] ^ 0x40]))
    vm.driver.cmd('verify')


def misplaced(vm: Machine) -> None:
    """One block stands where another should be."""
    vm.progress(2000)
    vm.driver.cmd('quiesce')
    blocks = [n for n in range(0, 16 * MIB, BLOCK)
              if any(read(image(vm), n, BLOCK))]
    here, there = vm.chance.sample(blocks, 2)
    patch(image(vm), there, read(image(vm), here, BLOCK))
    vm.driver.cmd('verify')


def move(vm: Machine) -> Daemon:
    """The disk is on another host from now on."""
    daemon = Daemon(vm)
    target = daemon.add_node(RECONNECT)
    job, _ = start_mirror(vm, target)
    pivot(vm, target, job)
    return daemon


def remote_byte(vm: Machine) -> None:
    """One byte of the disk is another, on another host."""
    daemon = move(vm)
    vm.driver.cmd('quiesce')
    place = vm.chance.randrange(16 * MIB)
    patch(daemon.path, place, bytes([read(daemon.path, place, 1)[0] ^ 0x40]))
    vm.driver.cmd('verify')


def old_copy(vm: Machine) -> None:
    """A mirror to another host ends too early."""
    daemon = Daemon(vm)
    target = daemon.add_node()
    job, _ = start_mirror(vm, target)
    wait_ready(vm, job)
    vm.cmd('block-job-cancel', device=job)
    finish_job(vm, job)
    vm.resume(1000)
    copy = vm.copy('copy')
    vm.del_node(target, keep=True)
    daemon.compare(copy)


def no_way_back(vm: Machine) -> None:
    """The disk is on another host, and the cable is out for too long."""
    move(vm)
    cut(vm)
    vm.progress(1 << 30)


def bad_backup(vm: Machine) -> None:
    """A backup lacks a byte."""
    target = vm.add_node('backup', 'raw')
    copy = vm.copy('copy')
    job = start_job(vm, 'blockdev-backup', vm.top, target=target, sync='full')
    wait_job(vm, job, 'concluded')
    vm.cmd('job-dismiss', id=job)
    path = vm.del_node(target, keep=True)
    place = vm.chance.randrange(16 * MIB)
    patch(path, place, bytes([read(path, place, 1)[0] ^ 1]))
    vm.compare(copy, path, 'raw')


def careless_balloon(vm: Machine) -> None:
    """Pages go into the balloon while data is in them."""
    device = Balloon(vm)
    device.add(0)
    vm.driver.cmd('use-memory', 'careful')
    while True:
        device.move('inflate', 0, device.runs())
        elsewhere(vm, 1)


def careless_unplug(vm: Machine) -> None:
    """Blocks of virtio-mem are unplugged while data is in them."""
    mem = VirtioMem(vm)
    mem.request(4)
    mem.plug(0, 4)
    mem.add(0, 4)
    vm.driver.cmd('use-memory', 'careful')
    while True:
        elsewhere(vm, 20)
        # One stays, so that what is lost is data and nothing else.
        mem.unplug(0, 3)
        mem.plug(0, 3)


def deaf_second(vm: Machine) -> None:
    """The second disk is not told of new requests any more."""
    second = Second(vm)
    second.cmd('drop-kicks', 1 << 30)
    both(vm, second, 1 << 30)


def wrong_second(vm: Machine) -> None:
    """One byte of the second disk is another."""
    second = Second(vm)
    second.cmd('quiesce')
    path = vm.nodes[second.image]['file']['filename']
    place = vm.chance.randrange(16 * MIB)
    patch(path, place, bytes([read(path, place, 1)[0] ^ 0x40]))
    second.cmd('verify')


def dead(vm: Machine) -> None:
    """QEMU ends."""
    vm.qmp.send('quit')
    vm.progress(1 << 30)


FAULTS = (
    Fault('lost available buffer notifications', 'requests do not end',
          lost_kicks),
    Fault('lost used buffer notifications', 'nobody was notified', lost_irqs),
    Fault('lost notifications of queues that move', 'nobody was notified',
          lost_irqs_moved),
    Fault('a disk that is older than it should be', 'its own old generation',
          old_disk),
    Fault('a write that was lost when QEMU was killed',
          'its own old generation', lost_by_kill),
    Fault('a changed byte', 'unknown data', wrong_byte),
    Fault('a misplaced block', 'of block', misplaced),
    Fault('a backup that is not the same', 'mismatch', bad_backup),
    Fault('a page that is taken while it is used', 'wrong data',
          careless_balloon),
    Fault('a block that is taken while it is used', 'wrong data',
          careless_unplug),
    Fault('lost notifications of a second disk', 'disk 1: stall', deaf_second),
    Fault('a changed byte of a second disk', 'unknown data', wrong_second),
    Fault('a changed byte on another host', 'unknown data', remote_byte, True),
    Fault('a mirror to another host that ended early', 'mismatch', old_copy,
          True),
    Fault('another host that is gone', 'requests do not end', no_way_back,
          True),
    Fault('a QEMU that ends', 'QEMU ended', dead),
)


def notice(fault: Fault, vm: Machine) -> None:
    """:raise SoakError: unless the fault is noticed, in the right words."""
    with vm:
        vm.progress()
        try:
            fault.plant(vm)
        except SoakError as error:
            if fault.words not in str(error):
                raise SoakError(f'the complaint is "{error}", without '
                                f'"{fault.words}"') from error
        else:
            raise SoakError('nothing was noticed')
        vm.expect_bad_end()
