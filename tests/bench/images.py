# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The files behind the disks: test files that are made once and kept, and a disk
of the user's.

A test file is full of data: holes and unwritten extents are another path
through the file system.
"""

import contextlib
import os
import stat
import subprocess
from dataclasses import dataclass
from typing import Iterator, Optional

MIB = 1 << 20
#: what must be left on the file system beside the test files
ROOM = 256 * MIB


class ImageError(Exception):
    """A file that cannot be used, in words for the user."""


@dataclass
class Image:
    """What is behind a disk. A file may be behind several at the same time."""
    path: str
    size: int
    #: the user's, not one of ours
    own: bool = False
    read_only: bool = False
    is_device: bool = False


def need_room(directory: str, size: int) -> None:
    """:raise ImageError: when the file would not fit."""
    info = os.statvfs(directory)
    free = info.f_bavail * info.f_frsize
    if free < size + ROOM:
        raise ImageError(
            f'no space: {(size + ROOM) // MIB} MiB are needed in {directory},'
            f' {free // MIB} MiB are free; free some, or use a smaller --size')


def raw_path(directory: str, size_mib: int) -> str:
    """Where a raw test file is kept."""
    return os.path.join(directory, f'raw-{size_mib}.img')


def qcow2_path(directory: str, size_mib: int) -> str:
    """Where a qcow2 test file is kept."""
    return os.path.join(directory, f'qcow2-{size_mib}.img')


def is_whole(path: str, size: int) -> bool:
    """Whether the file is there, with nothing missing."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return False
    return info.st_size == size and info.st_blocks * 512 >= size


def raw_file(directory: str, size_mib: int) -> Image:
    """A raw test file; made if it is not there."""
    size = size_mib * MIB
    path = raw_path(directory, size_mib)
    if not is_whole(path, size):
        os.makedirs(directory, exist_ok=True)
        need_room(directory, size)
        with new_file(path) as new:
            fill(new, size_mib)
    return Image(path, size)


@contextlib.contextmanager
def new_file(path: str) -> Iterator[str]:
    """A name to write to; gets the right one when all went well."""
    new = path + '.new'
    try:
        yield new
        os.rename(new, path)
    finally:
        if os.path.exists(new):
            os.unlink(new)


def fill(path: str, size_mib: int) -> None:
    """Writes a file, to the medium, too: no writeback may disturb later."""
    noise = os.urandom(MIB)
    try:
        with open(path, 'wb') as target:
            for number in range(size_mib):
                target.write(number.to_bytes(8, 'little') + noise[8:])
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise ImageError(f'cannot write {path}: {error.strerror}') from None


def qcow2_file(directory: str, size_mib: int, qemu_img: str) -> Image:
    """
    A qcow2 test file with all clusters allocated, so that neither reading nor
    writing changes anything but data; made if it is not there.
    """
    path = qcow2_path(directory, size_mib)
    raw = raw_file(directory, size_mib)
    if not os.path.exists(path):
        need_room(directory, raw.size)
        with new_file(path) as new:
            convert(qemu_img, raw.path, new)
    return Image(path, raw.size)


def convert(qemu_img: str, source: str, target: str) -> None:
    """Raw to qcow2, to the medium."""
    result = subprocess.run(
        [qemu_img, 'convert', '-f', 'raw', '-O', 'qcow2', source, target],
        capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ImageError(f'cannot write {target}: {result.stderr.strip()}')
    handle = os.open(target, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def warm(path: str) -> None:
    """Brings a file into the page cache."""
    with open(path, 'rb', buffering=0) as source:
        while source.read(4 * MIB):
            pass


def takes_direct(path: str) -> bool:
    """Whether the file can be opened with O_DIRECT."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def users_of(path: str, is_device: bool) -> Optional[str]:
    """Who on this host uses the disk; None if nobody does."""
    if is_device:
        command = ['lsblk', '-nro', 'MOUNTPOINTS', '--', path]
    else:
        command = ['losetup', '-n', '-O', 'NAME', '-j', path]
    result = subprocess.run(command, capture_output=True, text=True,
                            check=False)
    words = result.stdout.split()
    return words[0] if words else None


def disk_size(path: str) -> int:
    """Of a file or block device, in bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)


def own_disk(path: str, writes: bool) -> Image:
    """
    The user's disk. Its content is nobody's business, so it is raw to us.

    :raise ImageError: when it cannot be used, or when the host uses what would
                       be written to; QEMU itself looks for other QEMUs.
    """
    if not os.path.exists(path):
        raise ImageError(f'--disk {path}: no such file')
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ImageError(f'--disk {path}: neither a file nor a block device')
    if not os.access(path, os.R_OK | (os.W_OK if writes else 0)):
        raise ImageError(f'--disk {path}: not '
                         + ('writable' if writes else 'readable')
                         + ' for this user; change its permissions')
    is_device = stat.S_ISBLK(mode)
    user = users_of(path, is_device) if writes else None
    if user:
        raise ImageError(f'--disk {path}: the host uses it ({user}); unmount '
                         'it first')
    size = disk_size(path)
    if size < MIB:
        raise ImageError(f'--disk {path}: smaller than 1 MiB')
    return Image(path, size, own=True, read_only=not writes,
                 is_device=is_device)
