#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A guest that the firmware loads over QEMU's user network, and that writes and
verifies a disk on the plane; meanwhile a VNC client says hello.

guest.py FOLDER: with "guest", one sector, and "disk.img" in it. Ends with
status 0 if all of that has happened, and the plane has served the disk.
"""

import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path[:0] = [str(ROOT / 'tests' / 'bench'), str(ROOT / 'tests' / 'hosts')]

# pylint: disable=wrong-import-position
from session import Qmp  # noqa: E402
from waiting import wait_until  # noqa: E402

#: nothing is measured with this: it ends a test that hangs
GUARD = 240
#: of the guest's dots: each stands for 4 sectors that it has read back
ENOUGH = 20

DISK = '/machine/peripheral/disk0'


def start(folder: Path) -> subprocess.Popen:
    """QEMU, as a user would start it."""
    return subprocess.Popen(
        ['qemu-system-x86_64', '-accel', 'kvm', '-accel', 'tcg', '-m', '128',
         '-nodefaults', '-device', 'VGA', '-vnc', f'unix:{folder}/vnc',
         '-serial', f'file:{folder}/serial',
         '-qmp', f'unix:{folder}/qmp,server=on,wait=off',
         '-netdev', f'user,id=n0,tftp={folder},bootfile=guest',
         '-device', 'virtio-net-pci,netdev=n0,bootindex=1',
         '-object', 'iothread,id=io0',
         '-blockdev', f'file,node-name=f0,filename={folder}/disk.img',
         '-device', 'virtio-blk-pci,id=disk0,drive=f0,iothread=io0'],
        stdin=subprocess.DEVNULL)


def alive(process: subprocess.Popen, condition: bool) -> bool:
    """The condition, as long as there is a process to wait for."""
    if process.poll() is not None:
        sys.exit(f'QEMU ended with status {process.returncode}')
    return condition


def works(process: subprocess.Popen, serial: Path) -> bool:
    """The guest has read back enough of what it wrote."""
    said = serial.read_text('ascii', 'replace') if serial.exists() else ''
    if 'X' in said:
        sys.exit('the guest read something else than it had written')
    return alive(process, said.count('.') >= ENOUGH)


def greeting(path: Path) -> bytes:
    """What a VNC server says first."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(GUARD)
        client.connect(str(path))
        return client.recv(12)


def main() -> int:
    """Returns the exit status."""
    folder = Path(sys.argv[1])
    process = start(folder)
    try:
        wait_until('the guest', lambda: works(process, folder / 'serial'),
                   GUARD, SystemExit)
        hello = greeting(folder / 'vnc')
        if not hello.startswith(b'RFB 003.'):
            sys.exit(f'VNC says {hello!r}')
        qmp = Qmp(str(folder / 'qmp'))
        info = qmp.command('qom-get', path=DISK,
                           property='x-data-plane-info')
        qmp.close()
        if not info['serving']:
            sys.exit(f'the plane does not serve the disk: {info}')
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return 0


if __name__ == '__main__':
    sys.exit(main())
