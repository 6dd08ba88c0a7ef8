# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The disk that prepare made, and what a guest has left on its copy of it.

Looks at images with qemu-img, e2fsck and debugfs, after the guest has gone.
Knows neither QEMU nor the guest, and mounts nothing.
"""

import hashlib
import os
import subprocess
from typing import Dict, Iterator, List

ENVIRONMENT = {**os.environ, 'LC_ALL': 'C',
               'PATH': os.environ.get('PATH', '') + ':/usr/sbin:/sbin'}
BLOCK = 4096


class ImageError(Exception):
    """An image that does not hold what it should."""


def call(command: List[str]) -> bytes:
    """Runs a tool; returns what it printed."""
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True,
                            check=False)
    if result.returncode != 0:
        said = (result.stdout + result.stderr).decode(errors='replace')
        raise ImageError(f'{os.path.basename(command[0])} ended with status '
                         f'{result.returncode}: {" ".join(said.split())[:300]}')
    return result.stdout


class Root:
    """The root partition in a raw image of the whole disk."""

    def __init__(self, path: str, offset: int):
        self._path = path
        self._offset = offset
        # e2fsprogs' own way to name a part of a file
        self._part = f'{path}?offset={offset}'

    def check(self) -> None:
        """:raise ImageError: when the file system is not clean."""
        call(['e2fsck', '-fn', self._part])

    def _debugfs(self, request: str, *options: str) -> bytes:
        return call(['debugfs', *options, '-R', request, self._part])

    def read(self, path: str) -> bytes:
        """A file's data."""
        return self._debugfs(f'cat {path}')

    def package_status(self, package: str) -> str:
        """What dpkg has noted about a package; '' if it has not."""
        status = self.read('/var/lib/dpkg/status').decode()
        for paragraph in status.split('\n\n'):
            lines = paragraph.split('\n')
            if lines[0] == f'Package: {package}':
                return lines[1].partition(': ')[2]
        return ''

    def wrong_files(self, sums: Dict[str, str]) -> Iterator[str]:
        """Those of these files that do not have this SHA-256."""
        for path, sha256 in sums.items():
            if hashlib.sha256(self.read(path)).hexdigest() != sha256:
                yield path

    def damage_file(self, path: str) -> None:
        """Plants a fault: one byte of a file's data is another one."""
        block = int(self._debugfs(f'blocks {path}').split()[0])
        with open(self._path, 'r+b') as image:
            image.seek(self._offset + block * BLOCK)
            byte = image.read(1)[0]
            image.seek(-1, os.SEEK_CUR)
            image.write(bytes([byte ^ 1]))

    def damage_inode(self, path: str) -> None:
        """Plants a fault: a file's name is left without the file."""
        self._debugfs(f'clri {path}', '-w')


def make_overlay(qemu_img: str, base: str, path: str) -> None:
    """An image that takes up the writes, before a raw one that stays."""
    call([qemu_img, 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw',
          path])


def flatten(qemu_img: str, overlay: str, path: str) -> None:
    """Both together, as one raw image; the overlay is checked before."""
    call([qemu_img, 'check', '-q', '-f', 'qcow2', overlay])
    call([qemu_img, 'convert', '-f', 'qcow2', '-O', 'raw', overlay, path])


def head_checksum(path: str, length: int) -> str:
    """SHA-256 of the beginning of a raw image."""
    with open(path, 'rb') as image:
        return hashlib.sha256(image.read(length)).hexdigest()
