# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Buses, plug and unplug, errors, migration and snapshots of the machine.
"""

from typing import Any, Dict, List

import driver
from driver import FLUSH, IN, OUT, Request
from machine import wait_until
from subject import DEVICE, Subject, pattern
from tables import Row

#
# Buses
#

MMIO = 0xfeb00000


def on_pci(subject: Subject, machine: str, device: dict, bridge: str = '',
           legacy: bool = False, packed: bool = False) -> None:
    """A PCI device; bridge: what it is behind."""
    bridges = [{'driver': bridge, 'id': 'rp', 'addr': '5', **(
        {'chassis_nr': 1} if bridge == 'pci-bridge' else {})}] if bridge \
        else []
    if bridge:
        device = {**device, 'bus': 'rp',
                  'addr': '1' if bridge == 'pci-bridge' else '0'}
    if not subject.boot([subject.node('n0', 'qcow2')], [*bridges, device],
                        machine=machine):
        return
    subject.look()
    if bridge:
        subject.find_bridge(5)
    slot = int(device['addr'], 16)
    subject.start(subject.find(slot, int(bool(bridge)), legacy),
                  packed=packed)
    subject.io()
    subject.must('stop')
    subject.must('cont')
    subject.io()
    subject.read_all()
    subject.finish('n0.img')


def on_mmio(subject: Subject) -> None:
    """A microvm's."""
    device = subject.device(driver='virtio-blk-device', addr=None)
    subject.boot([subject.node('n0', 'qcow2')], [device],
                 ['-global', 'virtio-mmio.force-legacy=false'],
                 machine='microvm')
    for slot in range(24):
        mmio = driver.Mmio(subject.qtest, MMIO + slot * 512)
        if mmio.get(0) == 0x74726976 and mmio.get(8) == 2:
            break
    subject.note('slot', slot)
    disk = driver.Disk(mmio)
    subject.note('offered', disk.offer())
    subject.start(disk)
    subject.io(served=None)
    info = subject.qmp.cmd('qom-get', property='x-data-plane-info',
                           path=f'/machine/peripheral/{DEVICE}')
    subject.check(info)
    subject.read_all()
    subject.finish('n0.img')


BUSES: Dict[str, Dict[str, Any]] = {
    'pc': {'machine': 'pc'},
    'pc, legacy driver': {'machine': 'pc', 'legacy': True},
    'pc, behind a bridge': {'machine': 'pc', 'bridge': 'pci-bridge'},
    'q35': {'machine': 'q35'},
    'q35, legacy driver': {'machine': 'q35', 'legacy': True},
    'q35, behind a port': {'machine': 'q35', 'bridge': 'pcie-root-port'},
}
KINDS: Dict[str, Dict[str, Any]] = {
    'transitional': {'driver': 'virtio-blk-pci-transitional'},
    'non-transitional': {'driver': 'virtio-blk-pci-non-transitional'},
    'ccw': {'driver': 'virtio-blk-ccw'},
}
RINGS: Dict[str, Dict[str, Any]] = {
    'packed': {'packed': True}, 'in-order': {'in_order': True},
    'packed, in-order': {'packed': True, 'in_order': True},
    'without event index': {'event_idx': False},
    'one vector': {'vectors': 1},
}

#
# Plug and unplug, resets
#


def again(subject: Subject) -> None:
    """M6: plugged and unplugged, used in between or not."""
    subject.boot([subject.node('n0', 'qcow2')])
    for used in (True, False, True):
        subject.must('device_add', subject.device())
        subject.cmd('device_add', subject.device())
        if used:
            subject.start()
            subject.io()
        subject.cmd('device_add', subject.device(id='d1'))
        subject.unplug()
        subject.cmd('device_del', id=DEVICE)
        subject.look()
    subject.disk = None
    subject.finish('n0.img')


def stopped(subject: Subject) -> None:
    """Unplugged, and plugged, while the VM is stopped."""
    subject.boot([subject.node('n0', 'qcow2')], [subject.device()])
    subject.start()
    subject.io()
    subject.must('stop')
    subject.unplug()
    subject.must('device_add', subject.device())
    subject.look()
    subject.must('cont')
    subject.start()
    subject.io()
    subject.finish('n0.img')


def resets(subject: Subject) -> None:
    """M8: by the guest, by the monitor, and other features afterwards."""
    subject.boot([subject.node('n0', 'qcow2')], [subject.device()])
    for without in (0, 1 << 29, 1 << driver.F_FLUSH, 0):
        subject.start(without=without)
        subject.io()
        subject.note('before the reset', subject.disk.look())
        subject.disk.reset()
        subject.note('behind it', subject.disk.look())
        subject.must('system_reset')
        subject.look()
    subject.start()
    subject.disk.set_config(32, 0)
    subject.io()
    subject.look()
    subject.disk.set_config(32, 1)
    subject.io()
    subject.finish('n0.img')


#
# Errors
#

def error_policy(subject: Subject, policy: str, number: int) -> None:
    """A request fails with this error; "stop" is followed by "cont"."""
    action = {'werror': policy,
              'rerror': 'report' if policy == 'enospc' else policy}
    subject.boot([subject.node('below'), {
        'driver': 'blkdebug', 'node-name': 'n0', 'image': 'below',
        'inject-error': [
            {'event': 'none', 'sector': 64, 'iotype': kind, 'once': True,
             'errno': number} for kind in ('write', 'read')]}],
        [subject.device(**action)])
    subject.start()
    for request in (Request(OUT, 64, pattern(1, 4096)),
                    Request(IN, 64, size=4096), Request(FLUSH)):
        begun = subject.disk.begin([request])
        wait_until('an answer or a stop', lambda begun=begun:
                   subject.disk.answered(begun)
                   or subject.status() != 'running')
        if subject.status() != 'running':
            subject.look()
            subject.must('cont')
        answers = subject.disk.end(begun)
        # With "ignore", nothing was read into a buffer that counts.
        subject.note('answers', [answer[0] for answer in answers])
    subject.run('read', [Request(IN, 64, size=4096)])
    subject.check_served()
    subject.finish('below.img')


#
# Migration
#

def leave(subject: Subject, how: str) -> None:
    """The source's part."""
    subject.boot(subject.chain(), [subject.device()])
    if how != 'not started':
        subject.start(packed=how == 'packed')
        subject.io()
    if how == 'stopped':
        subject.must('stop')
    subject.must('migrate', uri='file:state')
    wait_until('the migration', lambda: subject.qmp.cmd(
        'query-migrate').get('status') in ('completed', 'failed'))
    subject.note('migrated', subject.qmp.cmd('query-migrate')['status'])
    subject.look()


def arrive(subject: Subject, source: Subject, how: str) -> None:
    """The target's part."""
    subject.boot(source.nodes, [subject.device()], ['-incoming', 'defer'])
    subject.look()
    if how == 'while a node is a target':
        # Storage goes by a mirror, which the guest's disk is the target of.
        subject.must('blockdev-add', {'driver': 'null-co', 'size': 4 << 20,
                                      'node-name': 's', 'read-zeroes': True})
        if subject.cmd('blockdev-mirror', {
                'job-id': 'j', 'device': 's', 'target': 'n0', 'sync': 'none',
                'auto-dismiss': False}):
            subject.end_job('j', 'complete')
    subject.must('migrate-incoming', uri='file:state')
    wait_until('the guest', lambda: subject.status()
               in ('running', 'paused'))
    subject.note('arrived', subject.status())
    if source.disk is None:
        subject.start()
    else:
        subject.disk = source.disk
        subject.disk.move(subject.qtest)
        if subject.status() == 'paused':
            subject.look()
            subject.must('cont')
    subject.io()
    subject.look()


def migrate(subject: Subject, how: str) -> None:
    """M9: to another QEMU, which has the plane or has not."""
    leave(subject, how)
    with subject.second() as target:
        arrive(target, subject, how)
        subject.disk = None
        if how == 'while the source still runs':
            subject.cmd('cont')
        subject.finish()
        target.read_all()
        target.finish('base.img', 'n0.img')


MIGRATIONS = ('running', 'stopped', 'not started', 'packed',
              'while a node is a target', 'while the source still runs')


def failed_migration(subject: Subject) -> None:
    """M9: it fails, and the guest goes on at home."""
    subject.boot(subject.chain(), [subject.device()])
    subject.start()
    subject.io()
    for uri in ('unix:nobody', 'fd:none', 'nonsense:'):
        if subject.cmd('migrate', uri=uri):
            wait_until('the failure', lambda: subject.qmp.cmd(
                'query-migrate').get('status') == 'failed')
        wait_until('the guest', lambda: subject.status() == 'running')
        subject.io()
    subject.look()
    subject.finish('n0.img')


def snapshot(subject: Subject) -> None:
    """A snapshot of the machine is saved by one and loaded by another."""
    subject.boot([subject.node('n0', 'qcow2')], [subject.device()])
    subject.start()
    subject.io()
    for job, words in (('save', {'tag': 'one', 'vmstate': 'n0',
                                 'devices': ['n0']}),):
        subject.must(f'snapshot-{job}', {'job-id': job, **words})
        subject.wait_job(job, 'concluded')
        subject.cmd('job-dismiss', id=job)
    subject.io()
    for job, words in (('load', {'tag': 'one', 'vmstate': 'n0',
                                 'devices': ['n0']}),):
        subject.must('stop')
        subject.must(f'snapshot-{job}', {'job-id': job, **words})
        subject.wait_job(job, 'concluded')
        subject.cmd('job-dismiss', id=job)
    subject.look()
    subject.cmd('cont')
    subject.note('status', subject.disk.look())
    subject.disk = None
    subject.finish()
    with subject.second() as target:
        target.boot(subject.nodes, [target.device()],
                    ['-loadvm', 'one'])
        target.look()
        target.start()
        target.io()
        target.read_all()
        target.cmd('snapshot-delete', {'job-id': 'delete', 'tag': 'one',
                                       'devices': ['n0']})
        target.wait_job('delete', 'concluded')
        target.finish('n0.img')


def rows() -> List[Row]:
    """All of them."""
    table = [Row(f'bus: {name}', lambda subject, bus=bus: on_pci(
        subject, device=subject.device(), **bus))
        for name, bus in BUSES.items()]
    table += [Row(f'bus: {name}', lambda subject, kind=kind: on_pci(
        subject, 'pc', subject.device(**kind)))
        for name, kind in KINDS.items()]
    table += [Row(f'ring: {name}', lambda subject, ring=ring: on_pci(
        subject, 'pc', subject.device(**ring),
        packed=ring.get('packed', False))) for name, ring in RINGS.items()]
    table.append(Row('bus: microvm', on_mmio))
    table += [Row('plugged again and again', again),
              Row('unplugged while stopped', stopped),
              Row('resets', resets)]
    table += [Row(f'error {number}: {policy}',
                  lambda subject, policy=policy, number=number:
                  error_policy(subject, policy, number))
              for policy in ('report', 'ignore', 'enospc', 'stop')
              for number in (5, 28)]
    table += [Row(f'migration: {how}', lambda subject, how=how:
                  migrate(subject, how), moves=True) for how in MIGRATIONS]
    table += [Row('migration that fails', failed_migration),
              Row('snapshot of the machine', snapshot, moves=True)]
    return table
