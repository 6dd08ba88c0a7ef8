# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The images behind the test guest's disks: what format they have, how QEMU is
told about them, and what stands in them.

Knows qemu-img, not the running guest.
"""

import hashlib
import json
import os
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from typing import List

#: size of a scratch disk; it is sparse, the test fills about a quarter
SCRATCH_SIZE = 1 << 30
#: the areas that inside/test-full writes to end below this
FULL_TEST_SIZE = 128 << 20


class DiskError(Exception):
    """A disk that cannot be used, in words for the user."""


@dataclass
class Disk:
    """One disk of the guest: 'name' is its device id and serial number."""
    name: str
    #: its queues are spread over these
    iothreads: List[str]
    path: str
    image_format: str
    #: the guest may overwrite it
    full: bool
    #: QEMU must not even open it for writing
    read_only: bool
    #: made for this run
    scratch: bool
    queues: int = 1

    def describe(self) -> str:
        """For the report's heading."""
        if self.scratch:
            return 'a scratch disk'
        access = ', only read' if self.read_only else ''
        return f'{self.path} ({self.image_format}{access})'

    def describe_queues(self) -> str:
        """Who serves them, for the report's heading."""
        count = 'one queue' if self.queues == 1 else f'{self.queues} queues'
        return f'{count} on {", ".join(self.iothreads)}'

    def _iothread_properties(self) -> dict:
        if len(self.iothreads) == 1:
            return {'iothread': self.iothreads[0]}
        return {'iothread-vq-mapping': [{'iothread': iothread}
                                        for iothread in self.iothreads]}

    def arguments(self, aio: str, stock: bool) -> List[str]:
        """QEMU's command line for this disk."""
        is_device = stat.S_ISBLK(os.stat(self.path).st_mode)
        protocol = {
            'driver': 'host_device' if is_device else 'file',
            'node-name': f'{self.name}-file',
            'filename': self.path,
            'aio': aio,
            # Linux AIO is asynchronous only without the page cache.
            'cache': {'direct': aio == 'native'},
            'discard': 'unmap',
            'read-only': self.read_only,
        }
        node = {
            'driver': self.image_format,
            'node-name': f'{self.name}-node',
            'file': f'{self.name}-file',
            'discard': 'unmap',
            'read-only': self.read_only,
        }
        device = {
            'driver': 'virtio-blk-pci',
            'id': self.name,
            'drive': f'{self.name}-node',
            'serial': self.name,
            'num-queues': self.queues,
            **self._iothread_properties(),
        }
        if stock:
            device['x-data-plane'] = 'off'
        return ['-blockdev', json.dumps(protocol),
                '-blockdev', json.dumps(node),
                '-device', json.dumps(device)]


def make_scratch(name: str, directory: str) -> Disk:
    """A sparse image in this directory, which is the caller's to remove."""
    path = os.path.join(directory, f'{name}.raw')
    with open(path, 'wb') as image:
        image.truncate(SCRATCH_SIZE)
    return Disk(name, [], path, 'raw', full=True, read_only=False,
                scratch=True)


def open_user_disk(path: str, qemu_img: str, *, full: bool,
                   read_only: bool) -> Disk:
    """
    The user's image or block device as the first disk.

    :raise DiskError: when it is neither raw nor qcow2, or too small for the
                      test that writes.
    """
    result = subprocess.run(
        [qemu_img, 'info', '--force-share', '--output=json', path],
        capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise DiskError(f'{path} cannot be read as a disk: '
                        f'{result.stderr.strip()}')
    info = json.loads(result.stdout)
    if info['format'] not in ('raw', 'qcow2'):
        raise DiskError(f'{path} is a {info["format"]} image: only raw and '
                        'qcow2 are served; convert it with qemu-img convert')
    size = info['virtual-size']
    if full and size < FULL_TEST_SIZE:
        raise DiskError(f'{path} has {size >> 20} MiB: the test that writes '
                        f'needs {FULL_TEST_SIZE >> 20} MiB')
    if size == 0:
        raise DiskError(f'{path} is empty: a disk needs at least one sector')
    return Disk('d0', [], path, info['format'], full=full,
                read_only=read_only, scratch=False)


def try_aio(disk: Disk, qemu_img: str, aio: str) -> None:
    """
    One read in the way that QEMU will use.

    :raise DiskError: when host, file system or build do not offer it.
    """
    # qemu-img knows the interfaces by the same names as QEMU.
    result = subprocess.run(
        [qemu_img, 'bench', '-U', '-f', disk.image_format, '-c', '1',
         '-d', '1', '-s', '512', '-i', aio,
         '-t', 'none' if aio == 'native' else 'writeback', disk.path],
        capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise DiskError(f'--aio {aio} does not work for {disk.path}: '
                        f'{result.stderr.strip()}; try another --aio')


def sample_checksum(disk: Disk, qemu_img: str, offset: int,
                    length: int) -> str:
    """
    SHA-256 of a piece of the disk, read by qemu-img and not by the guest.
    """
    with tempfile.TemporaryDirectory(prefix='guest-sample.') as directory:
        piece = os.path.join(directory, 'piece')
        subprocess.run(
            [qemu_img, 'dd', '-U', '-f', disk.image_format, '-O', 'raw',
             f'if={disk.path}', f'of={piece}', 'bs=512',
             f'skip={offset // 512}',
             f'count={(offset + length) // 512}'],
            capture_output=True, check=True)
        with open(piece, 'rb') as data:
            return hashlib.sha256(data.read(length)).hexdigest()
