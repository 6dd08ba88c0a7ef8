# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A QEMU whose guest boots from a disk: its command line, and how the host has
commands run in the guest (inside/agent answers).

Knows where everything is; not what is tested, which stands in cases.py.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from typing import Dict, List, Optional

import image
from machine import Machine, MachineError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, 'build')
BOOT = os.path.join(BUILD, 'boot')
QEMU = os.path.join(BUILD, 'qemu', 'qemu-system-x86_64')
QEMU_IMG = os.path.join(BUILD, 'qemu', 'qemu-img')
QEMU_TREE = os.path.join(BUILD, 'tree')
#: Debian's package ovmf; QEMU brings SeaBIOS along
OVMF_CODE = '/usr/share/OVMF/OVMF_CODE_4M.fd'
OVMF_VARS = '/usr/share/OVMF/OVMF_VARS_4M.fd'

#: a hang guard: ten times what the slowest step takes under emulation
GUARD = 600
DATA_SIZE = 128 << 20


class TestFailed(Exception):
    """Something did not behave as it must; the text says what."""


@dataclass
class Hardware:
    """What differs between the guests. 'disk' are properties of both disks."""
    machine: str
    firmware: str
    disk: Dict[str, object] = field(default_factory=dict)


def device_arguments(name: str, hardware: Hardware, number: int,
                     stock: bool) -> List[str]:
    """One virtio-blk disk, behind a root port where the machine has PCIe."""
    device: Dict[str, object] = {
        'driver': 'virtio-blk-pci', 'id': name, 'serial': name, 'drive': name,
        'num-queues': 1, 'bootindex': number, **hardware.disk}
    if 'iothread-vq-mapping' not in device:
        device['iothread'] = 'io0'
    if stock:
        device['x-data-plane'] = 'off'
    arguments = []
    if hardware.machine == 'q35':
        device['bus'] = f'port{number}'
        arguments = ['-device', f'pcie-root-port,id=port{number},'
                     f'chassis={number},slot={number}']
    return arguments + ['-device', json.dumps(device)]


def firmware_arguments(hardware: Hardware, run_dir: str) -> List[str]:
    """SeaBIOS needs nothing; OVMF flash, of which it writes one part."""
    if hardware.firmware == 'seabios':
        return []
    variables = os.path.join(run_dir, 'vars.fd')
    shutil.copyfile(OVMF_VARS, variables)
    nodes = (('code', OVMF_CODE, True), ('vars', variables, False))
    arguments = ['-machine', 'pflash0=code,pflash1=vars']
    for name, path, read_only in nodes:
        arguments += ['-blockdev', json.dumps({
            'driver': 'raw', 'node-name': name, 'read-only': read_only,
            'file': {'driver': 'file', 'filename': path,
                     'read-only': read_only}})]
    return arguments


def node_arguments(name: str, image_format: str, path: str) -> List[str]:
    """The image behind a disk."""
    return ['-blockdev', json.dumps({
        'driver': image_format, 'node-name': name, 'discard': 'unmap',
        'file': {'driver': 'file', 'filename': path, 'discard': 'unmap'}})]


class Session:
    """One guest, from its disks to its end. Files are in 'run_dir'."""

    def __init__(self, qmp, hardware: Hardware, run_dir: str, accel: str,
                 stock: bool):
        self.hardware = hardware
        self.overlay = os.path.join(run_dir, 'root.qcow2')
        self.data = os.path.join(run_dir, 'data.raw')
        self.flat = os.path.join(run_dir, 'flat.raw')
        #: SHA-256 of files that the guest has written
        self.sums: Dict[str, str] = {}
        #: the same of the whole data disk
        self.data_sum = ''
        #: what the plane said of the root disk when the guest last booted
        self.before: Optional[dict] = None
        #: for who reads the log
        self.notes: List[str] = []
        image.make_overlay(QEMU_IMG, os.path.join(BOOT, 'disk.img'),
                           self.overlay)
        with open(self.data, 'wb') as data:
            data.truncate(DATA_SIZE)
        self.machine = Machine(qmp, self._command(run_dir, accel, stock),
                               run_dir)

    def _command(self, run_dir: str, accel: str, stock: bool) -> List[str]:
        return [
            QEMU, '-nodefaults', '-no-user-config', '-display', 'none',
            '-machine', self.hardware.machine, '-accel', accel,
            '-cpu', 'host' if accel == 'kvm' else 'max',
            '-m', '768M', '-smp', '2',
            # The counters are read once more after the guest has gone.
            '-action', 'shutdown=pause',
            '-object', 'iothread,id=io0', '-object', 'iothread,id=io1',
            *firmware_arguments(self.hardware, run_dir),
            *node_arguments('root', 'qcow2', self.overlay),
            *node_arguments('data', 'raw', self.data),
            *device_arguments('root', self.hardware, 1, stock),
            *device_arguments('data', self.hardware, 2, stock),
        ]

    def root(self) -> image.Root:
        """The root file system of the flattened image."""
        with open(os.path.join(BOOT, 'root-offset'),
                  encoding='ascii') as offset:
            return image.Root(self.flat, int(offset.read()))

    def note(self, text: str) -> None:
        """Something that a reader of the log may want to know."""
        self.notes.append(text)

    # ---- the guest

    async def line(self) -> str:
        """A line that the guest's agent sent."""
        try:
            return await self.machine.record_line(GUARD)
        except MachineError as error:
            raise TestFailed(str(error)) from error

    async def wait_up(self) -> None:
        """Until the agent runs; firmware may use its port before."""
        while not re.match(r'up \S+$', await self.line()):
            pass

    async def run(self, command: str) -> str:
        """
        Runs a command in the guest.

        :raise TestFailed: when its status is not 0.
        """
        await self.machine.tell(command)
        lines: List[str] = []
        while True:
            line = await self.line()
            if line == '@@ 0':
                return '\n'.join(lines)
            if line.startswith('@@ '):
                raise TestFailed(f'in the guest, "{command}" ended with '
                                 f'status {line[3:]}: '
                                 + ' '.join(lines)[-300:])
            lines.append(line)

    async def run_tail(self, command: str) -> str:
        """The last line of what a command in the guest prints."""
        return (await self.run(command)).rsplit('\n', 1)[-1]

    async def leave(self, how: str) -> None:
        """Has systemd end the system; the agent may not come to answer."""
        await self.machine.tell(f'systemctl {how}')

    async def stat(self, disk: str) -> List[int]:
        """The guest's own counts of a disk."""
        numbers = await self.run(
            'cat "/sys/class/block/$(basename "$(readlink -f '
            f'/dev/disk/by-id/virtio-{disk})")/stat"')
        return [int(number) for number in numbers.split()]

    async def plane(self, disk: str) -> dict:
        """What the data plane says of a disk."""
        try:
            info = await self.machine.plane_info(disk)
        except MachineError as error:
            raise TestFailed(str(error)) from error
        if info is None:
            raise TestFailed('this QEMU has no data plane')
        return info
