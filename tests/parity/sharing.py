# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Nodes that a disk shares with another disk, and disks on parts of a chain.
"""

from typing import Any, Callable, Dict, List, Tuple

from subject import Subject
from tables import Row

#: the second disk of a pair, by what serves it
OTHERS: Dict[str, Callable[[Subject], dict]] = {
    'same IOThreads': lambda subject: subject.device(
        id='d1', addr='5'),
    'another IOThread': lambda subject: {
        **no_threads(subject), 'iothread': 'io1'},
    'no IOThread': lambda subject: no_threads(subject),
    'scsi-hd': lambda subject: {
        'driver': 'scsi-hd', 'id': 'd1', 'drive': 'n0', 'bus': 'scsi.0'},
    'scsi-hd without IOThread': lambda subject: {
        'driver': 'scsi-hd', 'id': 'd1', 'drive': 'n0', 'bus': 'scsi1.0'},
    'ide-hd': lambda subject: {
        'driver': 'ide-hd', 'id': 'd1', 'drive': 'n0', 'bus': 'ide.0'},
}


def no_threads(subject: Subject) -> dict:
    """A second disk in the main loop, which has no plane."""
    device = subject.device(id='d1', addr='5')
    for name in ('iothread', 'iothread-vq-mapping', 'num-queues'):
        device.pop(name, None)
    return device


#: both disks' share-rw, and whether the node is read-only
MODES: Dict[str, Tuple[bool, bool, bool]] = {
    'both share': (True, True, False),
    'the first shares': (True, False, False),
    'the second shares': (False, True, False),
    'nobody shares': (False, False, False),
    'read-only': (False, False, True),
    'read-only, both share': (True, True, True),
}

SCSI = ['-device', 'virtio-scsi-pci,id=scsi,iothread=io0,addr=6',
        '-device', 'virtio-scsi-pci,id=scsi1,addr=7']


def use_both(subject: Subject, second: Dict[str, Any]) -> None:
    """The guest writes through one and reads through both."""
    subject.start()
    subject.io()
    if second['driver'] == 'virtio-blk-pci':
        other = subject.find(5, number=1)
        other.start()
        threads = second.get('iothread') or second.get('iothread-vq-mapping')
        subject.io(other, served='d1' if threads else None)
        subject.read_all(other)
    subject.io()
    subject.read_all()
    subject.look()


def pair(subject: Subject, other: str, mode: str) -> None:
    """Two disks on one node, plugged one after the other."""
    first, second, read_only = MODES[mode]
    subject.boot([subject.node('n0', 'qcow2', **{'read-only': read_only})],
                 options=SCSI)
    device = {**OTHERS[other](subject), 'share-rw': second}
    taken = subject.must('device_add', subject.device(**{'share-rw': first}))
    if subject.cmd('device_add', device):
        use_both(subject, device)
    else:
        subject.start()
        subject.io()
    assert taken
    subject.finish('n0.img')


def together(subject: Subject, other: str, mode: str) -> None:
    """The same on the command line."""
    first, second, read_only = MODES[mode]
    device = {**OTHERS[other](subject), 'share-rw': second}
    if subject.boot([subject.node('n0', 'qcow2',
                                  **{'read-only': read_only})],
                    [subject.device(**{'share-rw': first}), device], SCSI):
        use_both(subject, device)
        subject.finish('n0.img')


#: a second disk on a part of the first one's chain: node, and what it needs
PARTS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    'the backing file': ('base', {}),
    'the backing file, shared': ('base', {'share-rw': True}),
    'a view of the backing file': ('view', {}),
    'the file': ('n0-file', {}),
    'the file, shared': ('n0-file', {'share-rw': True}),
    'a read-only view of the disk': ('n0view', {'share-rw': True}),
    'an overlay of the disk': ('above', {}),
}


def part(subject: Subject, name: str, last: bool) -> None:
    """
    covers: E3: a read-only disk on a node that is another's backing file

    last: the disk comes when its part has a disk already
    """
    node, more = PARTS[name]
    base, top = subject.chain()
    nodes = [{**base, 'read-only': True}, top,
             {'driver': 'raw', 'node-name': 'view', 'file': 'base',
              'read-only': True}]
    if node == 'n0view':
        nodes.append({'driver': 'raw', 'node-name': node, 'file': 'n0',
                      'read-only': True})
    elif node == 'above':
        nodes.append(subject.node('above', 'qcow2', '-F', 'qcow2', '-b',
                                  'n0.img', backing='n0'))
    subject.boot(nodes)
    devices = [subject.device(**{'share-rw': 'share-rw' in more}),
               subject.device(id='d1', addr='5', drive=node, **more)]
    taken = [subject.cmd('device_add', device)
             for device in (devices[::-1] if last else devices)]
    if last:
        taken = taken[::-1]
    if all(taken):
        use_both(subject, devices[1])
    elif taken[0]:
        subject.start()
        subject.io()
    subject.finish('base.img', 'n0.img')


def rows() -> List[Row]:
    """All of them."""
    table = [Row(f'pair ({other}): {mode}',
                 lambda subject, other=other, mode=mode:
                 pair(subject, other, mode))
             for other in OTHERS for mode in MODES]
    table += [Row(f'pair on the command line ({other}): {mode}',
                  lambda subject, other=other, mode=mode:
                  together(subject, other, mode))
              for other in ('same IOThreads', 'another IOThread', 'ide-hd')
              for mode in MODES]
    table += [Row(f'part ({"last" if last else "first"}): {name}',
                  lambda subject, name=name, last=last:
                  part(subject, name, last))
              for name in PARTS for last in (False, True)]
    return table
