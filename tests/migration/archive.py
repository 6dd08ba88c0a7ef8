# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The initramfs of a guest that obeys the host: what tests/guest/prepare makes,
and behind it an archive with inside/. For this test and tests/libvirt.
"""

import gzip
from pathlib import Path

HERE = Path(__file__).resolve().parent


def cpio_entry(name: str, mode: int, data: bytes) -> bytes:
    """One entry of a "newc" archive, as the kernel unpacks it."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    head += b"\0" * (-len(head) % 4)
    return head + data + b"\0" * (-len(data) % 4)


def make_initrd(base: Path, target: Path) -> None:
    """The guest's initramfs, and behind it an archive with our scripts."""
    extra = cpio_entry("migration", 0o040755, b"")
    for script in sorted((HERE / "inside").iterdir()):
        extra += cpio_entry(f"migration/{script.name}", 0o100755,
                            script.read_bytes())
    extra += cpio_entry("TRAILER!!!", 0, b"")
    data = base.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    data += b"\0" * (-len(data) % 512)
    target.write_bytes(data + extra)
