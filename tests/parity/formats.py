# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Each block driver below a disk.

A driver that QEMU knows and neither table here does is a failure. What there
is no image for is opened all the same: both must refuse it in the same words.
"""

import os
import struct
import zlib
from typing import Callable, Dict, List

from driver import FLUSH, IN, OUT, Request
from subject import DISK_MIB, MIB, Subject, pattern
from tables import Row

SIZE = DISK_MIB * MIB

#: what cannot be tried here, and why
ELSEWHERE = {
    'ftp': 'needs a network, and is not built',
    'ftps': 'needs a network, and is not built',
    'http': 'needs a network, and is not built',
    'https': 'needs a network, and is not built',
    'gluster': 'needs a server, and is not built',
    'iscsi': 'needs a server, and is not built',
    'nfs': 'needs a server, and is not built',
    'rbd': 'needs a cluster, and is not built',
    'ssh': 'needs a server, and is not built',
    'nvme': 'needs an NVMe device that VFIO may have',
    'host_cdrom': 'needs a drive',
    'blkreplay': 'needs a recorded run of a vCPU',
}


def bochs() -> bytes:
    """A growing image of Bochs with one extent."""
    header = b'Bochs Virtual HD Image'.ljust(32, b'\0')
    header += b'Redolog'.ljust(16, b'\0') + b'Growing'.ljust(16, b'\0')
    # version, size of the header, entries of the catalog, sizes of an extent's
    # bitmap and of an extent; reserved, size of the disk
    header += struct.pack('<IIIIIIQ', 0x20000, 512, 1, SIZE // 512 // 8, SIZE,
                          0, SIZE)
    return (header.ljust(512, b'\0') + bytes(4)
            + b'\xff' * (SIZE // 512 // 8) + pattern(7, SIZE))


def cloop() -> bytes:
    """A compressed loop of blocks of 64 KiB."""
    block = 64 << 10
    blocks = [zlib.compress(pattern(i, block)) for i in range(SIZE // block)]
    header = b'#!/bin/sh\n#V2.0 Format\n'.ljust(128, b'\0')
    header += struct.pack('>II', block, len(blocks))
    place = len(header) + 8 * (len(blocks) + 1)
    for data in blocks + [b'']:
        header += struct.pack('>Q', place)
        place += len(data)
    return header + b''.join(blocks)


def write(subject: Subject, name: str, data: bytes) -> dict:
    """A file, and the options of its node."""
    with open(subject.path(name), 'wb') as image:
        image.write(data)
    return {'driver': 'file', 'node-name': 'n0-file', 'filename': name}


def file(subject: Subject) -> dict:
    """The protocol itself."""
    return {**subject.node('n0')['file'], 'node-name': 'n0'}


def vvfat(subject: Subject) -> dict:
    """An empty folder: when a file in it was made would stand in the image."""
    os.mkdir(subject.path('folder'))
    return {'driver': 'vvfat', 'node-name': 'n0', 'dir': 'folder',
            'rw': False, 'read-only': True}


def nbd(subject: Subject) -> dict:
    """An export of a storage daemon."""
    subject.image('n0.img')
    subject.daemon('--blockdev', 'file,node-name=n0,filename=n0.img',
                   '--nbd-server', 'addr.type=unix,addr.path=nbd',
                   '--export', 'nbd,id=n0,node-name=n0,writable=on')
    return {'driver': 'nbd', 'node-name': 'n0', 'export': 'n0',
            'server': {'type': 'unix', 'path': 'nbd'}}


def snapshot_access(subject: Subject) -> List[dict]:
    """What a disk held when a filter was put on it."""
    return [subject.node('source'), subject.node('old'),
            {'driver': 'copy-before-write', 'node-name': 'cbw',
             'file': 'source', 'target': 'old'},
            {'driver': 'snapshot-access', 'node-name': 'n0', 'file': 'cbw',
             'read-only': True}]


def luks(subject: Subject) -> List[dict]:
    """As built: there is no crypto."""
    return [{'driver': 'luks', 'node-name': 'n0',
             'file': write(subject, 'n0.img', b'LUKS\xba\xbe\0\1' * 1000)}]


def on_file(driver: str, **more) -> Callable[[Subject], List[dict]]:
    """A filter on a qcow2 node, which is "below"."""
    def nodes(subject: Subject) -> List[dict]:
        return [subject.node('below', 'qcow2'),
                {'driver': driver, 'node-name': 'n0', 'file': 'below', **more}]
    return nodes


def form(name: str, *options: str, **more
         ) -> Callable[[Subject], List[dict]]:
    """An image that qemu-img makes."""
    return lambda subject: [subject.node('n0', name, *options, **more)]


def garbage(name: str, data: bytes = b'nothing to see here\n' * 1000
            ) -> Callable[[Subject], List[dict]]:
    """An image that is none."""
    return lambda subject: [
        {'driver': name, 'node-name': 'n0', 'read-only': True,
         'file': write(subject, 'n0.img', data)}]


def read_only(name: str, make: Callable[[], bytes]
              ) -> Callable[[Subject], List[dict]]:
    """An image that we make, and that stays as it is."""
    return lambda subject: [
        {'driver': name, 'node-name': 'n0', 'read-only': True,
         'file': {**write(subject, 'n0.img', make()), 'read-only': True}}]


def data_file(subject: Subject) -> List[dict]:
    """A qcow2 image whose data are apart."""
    subject.image('n0.data')
    node = subject.node('n0', 'qcow2', '-o', 'data_file=n0.data')
    return [{**node, 'data-file': {'driver': 'file', 'filename': 'n0.data'}}]


def quorum(**more) -> Callable[[Subject], List[dict]]:
    """Three copies, of which two must agree."""
    def nodes(subject: Subject) -> List[dict]:
        children = [f'copy{i}' for i in range(3)]
        return [*(subject.node(name) for name in children),
                {'driver': 'quorum', 'node-name': 'n0', 'children': children,
                 'vote-threshold': 2, **more}]
    return nodes


def null(driver: str) -> Callable[[Subject], List[dict]]:
    """Reads zeroes."""
    return lambda subject: [{'driver': driver, 'node-name': 'n0',
                             'size': SIZE, 'read-zeroes': True}]


def host_device(subject: Subject) -> List[dict]:
    """A file is none: refused."""
    subject.image('n0.img')
    return [{'driver': 'host_device', 'node-name': 'n0',
             'filename': 'n0.img'}]


def blkverify(subject: Subject) -> List[dict]:
    """Two copies that are compared; it cannot write zeroes."""
    return [subject.node('copy', 'qcow2'),
            {'driver': 'blkverify', 'node-name': 'n0', 'test': 'copy',
             'raw': subject.node('plain')['file']}]


#: driver: name of the case: its nodes
DRIVERS: Dict[str, Dict[str, Callable[[Subject], List[dict]]]] = {
    'file': {
        'threads': lambda subject: [{**file(subject), 'aio': 'threads'}],
        'io_uring': lambda subject: [{**file(subject), 'aio': 'io_uring'}],
        'native': lambda subject: [{**file(subject), 'aio': 'native',
                                    'cache': {'direct': True}}],
        'locked': lambda subject: [{**file(subject), 'locking': 'on'}],
        'read-only': lambda subject: [{**file(subject), 'read-only': True}],
        'auto-read-only': lambda subject: [{**file(subject),
                                            'auto-read-only': True}],
        'no-flush': lambda subject: [{**file(subject),
                                      'cache': {'no-flush': True}}],
        'detect-zeroes': lambda subject: [{**file(subject),
                                           'detect-zeroes': 'unmap'}]},
    'raw': {'whole': form('raw'),
            'part': lambda subject: [
                {**subject.node('n0', 'raw', size='8M'), 'offset': 2 * MIB,
                 'size': SIZE}]},
    'qcow2': {
        'v2': form('qcow2', '-o', 'compat=0.10'),
        'v3': form('qcow2'),
        'lazy': form('qcow2', '-o', 'lazy_refcounts=on'),
        'extended L2': form('qcow2', '-o', 'extended_l2=on'),
        'small clusters': form('qcow2', '-o', 'cluster_size=512'),
        'preallocated': form('qcow2', '-o', 'cluster_size=2M'),
        'zstd': form('qcow2', '-o', 'compression_type=zstd'),
        'data file': data_file,
        'overlay': lambda subject: subject.chain()},
    'qcow': {'image': form('qcow')},
    'qed': {'image': form('qed')},
    'parallels': {'image': form('parallels')},
    'vdi': {'image': form('vdi')},
    'vhdx': {'image': form('vhdx')},
    'vmdk': {'sparse': form('vmdk'),
             'stream': form('vmdk', '-o', 'subformat=streamOptimized')},
    'vpc': {'dynamic': form('vpc')},
    'bochs': {'image': read_only('bochs', bochs), 'garbage': garbage('bochs')},
    'cloop': {'image': read_only('cloop', cloop), 'garbage': garbage('cloop')},
    'dmg': {'garbage': garbage('dmg')},
    'luks': {'image': luks},
    'nbd': {'export': lambda subject: [nbd(subject)]},
    'null-co': {'zeroes': null('null-co')},
    'null-aio': {'zeroes': null('null-aio')},
    'vvfat': {'folder': lambda subject: [vvfat(subject)]},
    'host_device': {'a file': host_device},
    'quorum': {'quorum': quorum(), 'fifo': quorum(**{'read-pattern': 'fifo'})},
    'throttle': {'no limit': on_file('throttle', **{
        'throttle-group': 'group'})},
    'blkdebug': {
        'still': lambda subject: [
            subject.node('below', 'qcow2'),
            {'driver': 'blkdebug', 'node-name': 'n0', 'image': 'below'}],
        'errors': lambda subject: [subject.node('below'), {
            'driver': 'blkdebug', 'node-name': 'n0', 'image': 'below',
            'inject-error': [{'event': 'none', 'sector': 64,
                              'iotype': 'write'},
                             {'event': 'none', 'sector': 130,
                              'iotype': 'read'}]}]},
    'blklogwrites': {'log': lambda subject: [
        subject.node('below'), subject.node('log', size='16M'),
        {'driver': 'blklogwrites', 'node-name': 'n0', 'file': 'below',
         'log': 'log'}]},
    'blkverify': {'copies': blkverify},
    'compress': {'filter': on_file('compress')},
    'copy-on-read': {'overlay': lambda subject: subject.chain()[:1] + [
        subject.node('overlay', 'qcow2', '-F', 'qcow2', '-b', 'base.img',
                     backing='base'),
        {'driver': 'copy-on-read', 'node-name': 'n0', 'file': 'overlay'}]},
    'copy-before-write': {'filter': lambda subject: [
        subject.node('source'), subject.node('old'),
        {'driver': 'copy-before-write', 'node-name': 'n0', 'file': 'source',
         'target': 'old'}]},
    'preallocate': {'filter': lambda subject: [
        {'driver': 'preallocate', 'node-name': 'n0',
         'file': {**file(subject), 'node-name': 'below'}}]},
    'snapshot-access': {'on copy-before-write': snapshot_access},
}
#: those that do not write zeroes right, or assert: see "Known and left"
NO_ZEROES = ('blkverify',)


def run_driver(subject: Subject, driver: str,
               nodes: Callable[[Subject], List[dict]]) -> None:
    """The nodes are added, the disk is plugged, used and unplugged."""
    subject.boot(options=['-object', 'throttle-group,id=group'])
    for node in nodes(subject):
        if not subject.cmd('blockdev-add', node):
            subject.quit()
            return
    more = {'discard': False, 'write-zeroes': False} \
        if driver in NO_ZEROES else {}
    if not subject.cmd('device_add', subject.device(**more)):
        subject.quit()
        return
    subject.look()
    subject.start()
    if driver == 'blkdebug':
        errors(subject)
    else:
        subject.io()
        subject.io()
    subject.read_all()
    subject.look()
    subject.unplug()
    if subject.cmd('blockdev-del', node_name='n0'):
        subject.images(*(name for name in os.listdir(subject.work)
                         if name.endswith(('.img', '.data', 'folder'))))
    subject.quit()


def errors(subject: Subject) -> None:
    """Requests of which some fail."""
    for sector in (0, 64, 128, 64):
        subject.run(f'write {sector}', [Request(OUT, sector,
                                                pattern(sector, 4096))])
        subject.run(f'read {sector}', [Request(IN, sector, size=4096)])
        subject.run('flush', [Request(FLUSH)])
    subject.check_served()


def enumerate_drivers(subject: Subject) -> None:
    """Each driver that QEMU knows has its place."""
    subject.boot()
    schema = subject.qmp.cmd('query-qmp-schema')
    subject.finish()
    names = [entry['values'] for entry in schema
             if entry['meta-type'] == 'enum' and 'null-co' in entry['values']]
    subject.same({**DRIVERS, **ELSEWHERE}, names[0], 'block drivers')


def rows() -> List[Row]:
    """A row for each case."""
    table = [Row(f'driver {driver}: {case}',
                 lambda subject, driver=driver, nodes=nodes:
                 run_driver(subject, driver, nodes))
             for driver, cases in DRIVERS.items()
             for case, nodes in cases.items()]
    table.append(Row('drivers that QEMU has', enumerate_drivers))
    return table
