# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What a Debian does whose disks are on the data plane, on which hardware.

A case is a guest and its steps; each step is a test of its own, and what
follows a step that failed is not reached.
"""

import os
from dataclasses import dataclass
from typing import Awaitable, Callable, List, Union

import image
import verdicts
from machine import MachineError
from session import (BOOT, DATA_SIZE, GUARD, Hardware, QEMU_IMG, Session,
                     TestFailed)

#: how often a disk is taken away and given back
ROUNDS = 4


def hold(problems) -> None:
    """:raise TestFailed: with all problems, if there is one."""
    found = list(problems)
    if found:
        raise TestFailed('; '.join(found))


# ---- steps with the guest

async def booted(session: Session, case: 'Case') -> None:
    """Firmware, boot loader and Linux, up to systemd's last target."""
    await session.wait_up()
    # Fails unless all units that were wanted are up.
    await session.run('systemctl is-system-running --wait')
    await session.run('systemctl is-active multi-user.target')
    failed = await session.run('systemctl --failed --plain --no-legend')
    if failed:
        raise TestFailed(f'units failed: {failed}')
    firmware = await session.run(
        'if [ -d /sys/firmware/efi ]; then echo ovmf; else echo seabios; fi')
    if firmware != case.hardware.firmware:
        raise TestFailed(f'booted by {firmware}')


async def served(session: Session, _case: 'Case') -> None:
    """The plane served firmware and Linux, each of them."""
    stat = await session.stat('root')
    now = await session.plane('root')
    counts = verdicts.since(session.before, now)
    session.note(f'starts {now["starts"]}, served {counts}, of these before '
                 f'Linux {verdicts.firmware_reads(stat, counts)} reads')
    hold(verdicts.boot_problems(session.before, now, stat,
                                mebibytes_to_load()))
    session.before = now


def mebibytes_to_load() -> int:
    """No firmware and no boot loader reads more than that at once."""
    return sum(os.path.getsize(os.path.join(BOOT, name)) >> 20
               for name in ('vmlinuz', 'initrd.img'))


async def queues_used(session: Session, _case: 'Case') -> None:
    """Each queue has served something, and each by its own IOThread."""
    info = await session.plane('root')
    idle = verdicts.idle_queues(info)
    threads = [queue['iothread'] for queue in info['queues']]
    if idle or threads != ['io0', 'io1']:
        raise TestFailed(f'IOThreads of the queues: {threads}; these served '
                         f'nothing: {idle}')


async def packages_intact(session: Session, _case: 'Case') -> None:
    """All files of all packages are what their packages say."""
    await session.run('dpkg --verify')


async def package_installed(session: Session, _case: 'Case') -> None:
    """A package is installed and its program runs."""
    await session.run('apt-get install -q -y ./extra.deb')
    said = await session.run('hello')
    if said != 'Hello, world!':
        raise TestFailed(f'hello said {said!r}')
    await session.run('dpkg --verify hello')


async def files_written(session: Session, _case: 'Case') -> None:
    """Files are written, and read back from the disk."""
    await session.run('mkdir files && dd if=/dev/urandom of=files/random '
                      'bs=1M count=8 status=none')
    await session.run('cp -a /usr/lib/systemd files/copy')
    await session.run('find files -type f -print0 | '
                      'xargs -0 sha256sum >sums && sync')
    for path in ('files/random', 'sums'):
        line = await session.run(f'sha256sum {path}')
        session.sums[f'/root/{path}'] = line.split()[0]
    await files_intact(session, _case)


async def files_intact(session: Session, _case: 'Case') -> None:
    """The files that were written before are still the same."""
    await session.run('echo 3 >/proc/sys/vm/drop_caches')
    await session.run('sha256sum --quiet -c sums')


async def churn(session: Session, how: str) -> None:
    """Takes the data disk away under load, and gives it back."""
    before = await session.plane('data')
    verified = await session.run_tail(f'churn {how} {ROUNDS}')
    now = await session.plane('data')
    session.note(f'{verified} MiB verified, starts {before["starts"]} to '
                 f'{now["starts"]}')
    if not verified.isdigit() or int(verified) < ROUNDS:
        raise TestFailed(f'only {verified} MiB could be verified')
    hold(verdicts.end_problems(now))


async def unbound(session: Session, _case: 'Case') -> None:
    """The driver is unbound and bound while the disk is under load."""
    before = await session.plane('data')
    await churn(session, 'driver')
    starts = verdicts.starts_since(before, await session.plane('data'))
    if starts < ROUNDS:
        raise TestFailed(f'the data plane started {starts} times in {ROUNDS} '
                         'rounds')


async def rescanned(session: Session, _case: 'Case') -> None:
    """The device is removed and found again while it is under load."""
    await churn(session, 'pci')


async def rebooted(session: Session, case: 'Case') -> None:
    """A reset, and all the way from the firmware again."""
    session.before = await session.plane('root')
    await session.leave('reboot')
    await booted(session, case)
    await served(session, case)


async def powered_off(session: Session, _case: 'Case') -> None:
    """The guest shuts down, and QEMU ends in good order."""
    line = await session.run('sha256sum /dev/disk/by-id/virtio-data')
    session.data_sum = line.split()[0]
    await session.leave('poweroff')
    try:
        end = await session.machine.wait_shutdown(GUARD)
    except MachineError as error:
        raise TestFailed(str(error)) from error
    if not end.get('guest') or end.get('reason') != 'guest-shutdown':
        raise TestFailed(f'the guest ended otherwise: {end.get("reason")}')
    for disk in ('root', 'data'):
        hold(verdicts.end_problems(await session.plane(disk)))
    status = await session.machine.quit()
    if status != 0:
        raise TestFailed(f'QEMU ended with status {status}')


# ---- steps with what is left

def clean(session: Session, _case: 'Case') -> None:
    """e2fsck finds nothing."""
    image.flatten(QEMU_IMG, session.overlay, session.flat)
    session.root().check()


def contents(session: Session, _case: 'Case') -> None:
    """The image holds what the guest has written."""
    root = session.root()
    status = root.package_status('hello')
    if status != 'install ok installed':
        raise TestFailed(f'dpkg has noted about hello: "{status}"')
    hold(f'{path} differs' for path in root.wrong_files(session.sums))
    if image.head_checksum(session.data, DATA_SIZE) != session.data_sum:
        raise TestFailed('the data disk holds something else than the guest '
                         'has read')


def faults_found(session: Session, case: 'Case') -> None:
    """A damaged file and a damaged file system do not pass. Comes last."""
    root = session.root()
    root.damage_file('/root/files/random')
    if list(root.wrong_files(session.sums)) != ['/root/files/random']:
        raise TestFailed('the damaged file was not found')
    root.damage_inode('/root/files/random')
    try:
        root.check()
    except image.ImageError:
        return
    raise TestFailed('the damaged file system was not found')


Step = Callable[[Session, 'Case'], Union[Awaitable[None], None]]


@dataclass
class Case:
    """A guest, and what is tested with it."""
    name: str
    hardware: Hardware
    steps: List[Step]


MAPPING = [{'iothread': 'io0', 'vqs': [0]}, {'iothread': 'io1', 'vqs': [1]}]

END = [powered_off, clean, contents]

# covers: D7, M6
CASES = [
    Case('seabios', Hardware('pc', 'seabios'),
         [booted, served, package_installed, files_written, unbound, rescanned,
          rebooted, files_intact, packages_intact, *END, faults_found]),
    Case('ovmf', Hardware('q35', 'ovmf', {
        'num-queues': 2, 'iothread-vq-mapping': MAPPING}),
         [booted, served, package_installed, files_written, queues_used,
          unbound, rescanned, rebooted, files_intact, *END]),
    Case('packed', Hardware('q35', 'ovmf', {'packed': True}),
         [booted, served, package_installed, files_written, unbound, *END]),
]
