# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Who is measured on what: the subjects, the backends, and the command line that
each pair of them needs.

Knows QEMU's options and the driver's; starts nothing but QEMU's own help.
"""

import json
import os
import stat
import subprocess
from dataclasses import dataclass
from typing import List, Optional, Tuple

import fio
import host
from images import MIB, Image
from options import Options
from plan import Workload

BUILD = os.path.join(host.ROOT, 'build')
DRIVER = os.path.join(BUILD, 'bench', 'virtio-blk-driver')
QEMU = os.path.join(BUILD, 'qemu', 'qemu-system-x86_64')
STORAGE_DAEMON = os.path.join(BUILD, 'qemu', 'storage-daemon',
                              'qemu-storage-daemon')
QEMU_IMG = os.path.join(BUILD, 'qemu', 'qemu-img')
DEBIAN_QEMU = '/usr/bin/qemu-system-x86_64'

#: those of the properties that JSON has to have as a boolean
BOOLEANS = ('x-direct', 'x-fixed-buffers')
SWITCH = {True: 'on', False: 'off'}

#: how far a slice of a disk is aligned
SLICE_ALIGN = MIB
#: the first of the slots in which the driver has places for many disks
PLACES_SLOT = 8


class SubjectError(Exception):
    """A subject that cannot be measured, in words for the user."""


@dataclass
class Subject:
    """One who is measured."""
    name: str
    #: qemu, vhost-user or fio
    kind: str
    path: str
    version: str = ''
    #: further properties of the device
    properties: Tuple[str, ...] = ()
    #: whether the data plane must serve; None for a QEMU without one
    serving: Optional[bool] = None
    #: whether several IOThreads can serve one disk
    mapping: bool = True
    #: whether it knows VIRTIO_F_IN_ORDER
    in_order: bool = True
    #: whether its requests are to go past the block layer's coroutines
    direct: bool = False
    #: whether it has the qtest accelerator
    qtest: bool = True
    #: what a back-end such as SPDK needs: no EVENT_IDX, memory of huge pages,
    #: and, as it polls all the time, to be held while others are measured
    event_idx: bool = True
    huge_pages: bool = False
    hold: bool = False
    #: whether it has the idle disks of --idle-disks
    idle: bool = True

    def to_json(self) -> dict:
        """For the file of results."""
        return {'name': self.name, 'kind': self.kind, 'path': self.path,
                'version': self.version,
                'properties': list(self.properties)}


@dataclass
class Backend:
    """What is behind the disk."""
    name: str
    #: None for null-co
    image: Optional[Image] = None
    aio: str = 'io_uring'
    direct: bool = False
    is_qcow2: bool = False
    #: requests per second that the throttle filter lets pass; None: no filter
    limit: Optional[int] = None

    def fits_fio(self) -> bool:
        """Whether fio can use the same data in a way that compares."""
        return (self.image is not None and not self.is_qcow2
                and self.limit is None)


# ---- subjects

def qemu_version(path: str) -> str:
    """The first line of what it says about itself."""
    result = subprocess.run([path, '--version'], capture_output=True,
                            text=True, check=False)
    lines = result.stdout.splitlines()
    if result.returncode != 0 or not lines:
        raise SubjectError(f'{path} does not run as a QEMU: '
                           + (result.stderr.strip() or 'it says nothing'))
    return lines[0]


def device_properties(path: str) -> str:
    """What QEMU's help says of the disk."""
    result = subprocess.run([path, '-device', 'virtio-blk-pci,help'],
                            capture_output=True, text=True, check=False)
    if result.returncode != 0 or 'num-queues=' not in result.stdout:
        raise SubjectError(f'{path} is no QEMU with virtio-blk-pci: '
                           + (result.stderr.strip() or 'it has no help on it'))
    return result.stdout


def has_qtest(path: str) -> bool:
    """Whether QEMU has the qtest accelerator, which its help does not list."""
    result = subprocess.run(
        [path, '-accel', 'qtest', '-machine', 'none', '-nodefaults',
         '-display', 'none', '-monitor', 'stdio'], input='quit\n',
        capture_output=True, text=True, check=False, timeout=60)
    return result.returncode == 0


def properties_of(name: str, known: str) -> Tuple[str, ...]:
    """What makes one of ours what it is; each default is named, too."""
    if name == 'stock':
        return ('x-data-plane=off',)
    if 'x-direct=' not in known:
        return ()
    if name == 'fixed':
        return ('x-direct=on', 'x-fixed-buffers=on')
    return ('x-direct=on' if name == 'direct' else 'x-direct=off',)


def qemu_subject(name: str, path: str, built: bool = False) -> Subject:
    """
    :param built: one of options.SUBJECTS from this tree; else it is left as it
                  is
    :raise SubjectError: when it cannot be measured.
    """
    path = os.path.abspath(path)
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        raise SubjectError(f'{name}: {path} is no program')
    known = device_properties(path)
    has_plane = 'x-data-plane=' in known
    if built and not has_plane:
        raise SubjectError(f'{path} has no data plane: run scripts/build')
    for wants, needed in (('direct', 'x-direct'), ('fixed', 'x-fixed-buffers')):
        if built and name == wants and f'{needed}=' not in known:
            raise SubjectError(f'{path} has no {needed}: run scripts/build')
    stock = built and name == 'stock'
    return Subject(name, 'qemu', path, qemu_version(path),
                   properties=properties_of(name, known) if built else (),
                   serving=not stock if has_plane else None,
                   mapping='iothread-vq-mapping=' in known,
                   in_order='in_order=' in known,
                   direct=built and name in ('direct', 'fixed'),
                   qtest=has_qtest(path))


def built_in(name: str) -> Optional[Subject]:
    """One of options.SUBJECTS; None if it is not installed."""
    if name == 'fio':
        version = fio.version()
        return Subject(name, 'fio', fio.FIO, version) if version else None
    if name == 'debian':
        if not os.path.exists(DEBIAN_QEMU):
            return None
        return qemu_subject(name, DEBIAN_QEMU)
    subject = qemu_subject(name, QEMU, built=True)
    subject.idle = name != 'alone'
    return subject


def find(options: Options) -> Tuple[List[Subject], List[str]]:
    """
    :return: the subjects, and notes on those that there are not.
    :raise SubjectError: when one that the user named cannot be measured.
    """
    subjects, notes = [], []
    packages = {'debian': 'qemu-system-x86', 'fio': 'fio'}
    for name in options.subjects:
        subject = built_in(name)
        if subject:
            subjects.append(subject)
        else:
            notes.append(f'{name} is left out: the package {packages[name]} '
                         'is not installed')
    for name, path in options.qemu:
        subjects.append(qemu_subject(name, path))
    for name, path in options.vhost_user:
        subjects.append(vhost_user_subject(name, path))
        notes.append(f'{name} has a disk of its own, the same for every '
                     'backend, and is not pinned; if it polls, it takes '
                     "a CPU also while others are measured")
    for name, path in options.spdk:
        subjects.append(vhost_user_subject(name, path, event_idx=False,
                                           huge_pages=True, hold=True))
        notes.append(f'{name} has a disk of its own, the same for every '
                     'backend, and is not pinned; it is driven without '
                     'EVENT_IDX, from huge pages, and held while the others '
                     'are measured')
    return subjects, notes


def vhost_user_subject(name: str, path: str, **needs) -> Subject:
    """
    :raise SubjectError: when there is nobody to connect to.
    """
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        raise SubjectError(f'{name}: {path} is no socket; start the back-end '
                           'first')
    return Subject(name, 'vhost-user', os.path.abspath(path), **needs)


def accelerator(those: List[Subject], backend: 'Backend') -> str:
    """
    The same for all QEMUs: qtest, under which memory is written as under KVM,
    without TCG's tracking of translated code. Its clock stands still, by which
    a throttle filter measures.
    """
    if backend.limit is not None:
        return 'tcg'
    return 'qtest' if all(subject.qtest for subject in those
                          if subject.kind == 'qemu') else 'tcg'


def left_out(subject: Subject, backend: Backend, options: Options
             ) -> Optional[str]:
    """Why a subject is not measured on a backend; None if it is."""
    if subject.kind == 'fio' and not backend.fits_fio():
        return 'there is no plain file for fio'
    if subject.kind == 'qemu' and options.iothreads > 1 \
            and options.disks == 1 and not subject.mapping:
        return 'it has no iothread-vq-mapping for several IOThreads'
    if subject.kind != 'qemu' and options.disks > 1:
        return 'only QEMU can have several disks'
    if subject.kind == 'vhost-user' and options.idle_disks:
        return 'idle disks can be added to QEMU only'
    if options.in_order and not subject.in_order:
        return 'it has no VIRTIO_F_IN_ORDER'
    return None


# ---- backends

def to_json(value) -> str:
    """One of QEMU's options."""
    return json.dumps(value)


def make_backend(name: str, image: Optional[Image], options: Options
                 ) -> Backend:
    """One of options.BACKENDS on this image."""
    if name == 'null-co':
        return Backend(name)
    if name == 'qcow2':
        return Backend(name, image, is_qcow2=True)
    if name == 'throttled':
        return Backend(name, image, limit=options.throttle_iops)
    kind, aio = name.split('-')
    return Backend(name, image, aio=aio, direct=kind == 'direct')


def slice_of(size: int, number: int, count: int) -> Tuple[int, int]:
    """
    Offset and size of one part of count: who verifies must be alone with what
    is written.
    """
    part = size // count // SLICE_ALIGN * SLICE_ALIGN
    return number * part, part


def disk_part(backend: Backend, options: Options,
              part: Optional[Tuple[int, int]], disk: int
              ) -> Optional[Tuple[int, int]]:
    """Likewise, of the subject's part for one of its disks."""
    if options.disks == 1 or not options.verify:
        return part
    start, size = part or (0, backend.image.size)
    offset, own = slice_of(size, disk, options.disks)
    return start + offset, own


def file_node(backend: Backend, disk: int) -> dict:
    """The protocol node."""
    image = backend.image
    node = {'driver': 'host_device' if image.is_device else 'file',
            'node-name': f'disk{disk}-file', 'filename': image.path,
            'aio': backend.aio, 'cache': {'direct': backend.direct},
            'read-only': image.read_only}
    if backend.is_qcow2:
        # All subjects have the same image open, which qcow2 does not expect.
        # What they write overwrites data in place: nothing changes that
        # another one keeps in memory.
        node['locking'] = 'off'
    return node


def nodes(backend: Backend, options: Options,
          part: Optional[Tuple[int, int]], disk: int = 0) -> List[dict]:
    """The graph, the node of the disk last, under the name disk0-node."""
    image = backend.image
    if image is None:
        return [{'driver': 'null-co', 'node-name': f'disk{disk}-node',
                 'size': options.size_mib * MIB}]
    chain = [file_node(backend, disk)]
    common = {'cache': {'direct': backend.direct},
              'read-only': image.read_only}
    if backend.is_qcow2:
        chain.append({'driver': 'qcow2', **common})
    if part is not None:
        chain.append({'driver': 'raw', 'offset': part[0], 'size': part[1],
                      **common})
    elif not backend.is_qcow2:
        chain.append({'driver': 'raw', **common})
    if backend.limit is not None:
        chain.append({'driver': 'throttle', 'throttle-group': f'tg{disk}',
                      **common})
    for number, node in enumerate(chain[1:], 1):
        node['file'] = chain[number - 1]['node-name']
        node['node-name'] = f'disk{disk}-{number}'
    chain[-1]['node-name'] = f'disk{disk}-node'
    return chain


def place(number: int) -> dict:
    """Where the driver looks for it: see bench_pci_blk_at()."""
    return {'multifunction': True,
            'addr': f'{PLACES_SLOT + number // 8:x}.{number % 8}'}


def device_text(words: dict) -> str:
    """A -device option without nested values."""
    words = {name: SWITCH[value] if isinstance(value, bool) else value
             for name, value in words.items()}
    driver = words.pop('driver')
    return ','.join([driver] + [f'{name}={value}'
                                for name, value in words.items()])


def device(subject: Subject, options: Options, node: Optional[str] = None,
           disk: int = 0) -> str:
    """The -device option; node: the disk's own if None."""
    words = {'driver': 'virtio-blk-pci', 'id': f'disk{disk}',
             'drive': node or f'disk{disk}-node',
             **(place(disk - 1) if disk else {}),
             'num-queues': options.queues, 'queue-size': options.queue_size,
             # With the other subjects, all of which have the same file open.
             'share-rw': True}
    if options.ring == 'packed':
        words['packed'] = True
    if options.in_order:
        words['in_order'] = True
    for entry in subject.properties:
        name, value = entry.split('=', 1)
        words[name] = value == 'on' if name in BOOLEANS else value
    if options.iothreads == 1 or options.disks > 1:
        words['iothread'] = f'io{disk % options.iothreads}'
        return device_text(words)
    words['iothread-vq-mapping'] = [{'iothread': name}
                                    for name in iothread_ids(options)]
    return to_json(words)


def idle_disks(subject: Subject, options: Options) -> List[str]:
    """QEMU's options for them; their places are behind the others'."""
    words = []
    for number in range(options.idle_disks if subject.idle else 0):
        name = f'idle{number}'
        iothread = number % options.iothreads
        words += ['-blockdev', to_json({'driver': 'null-co',
                                        'node-name': name})]
        words += ['-device', ','.join(
            [device_text({'driver': 'virtio-blk-pci', 'id': name,
                          'drive': name, 'num-queues': options.idle_queues,
                          **place(options.disks - 1 + number),
                          'iothread': f'io{iothread}'}),
             *(['packed=on'] if options.ring == 'packed' else []),
             *(['in_order=on'] if options.in_order else []),
             *subject.properties])]
    return words


def iothread_ids(options: Options) -> List[str]:
    """The IOThreads' names."""
    return [f'io{number}' for number in range(options.iothreads)]


def qemu_command(subject: Subject, backend: Backend, options: Options,
                 qmp_path: str, part: Optional[Tuple[int, int]] = None,
                 accel: str = 'qtest') -> List[str]:
    """QEMU, without what the driver adds."""
    # The driver adds others, for who names none: the first one is taken.
    command = [subject.path, '-accel', accel]
    for name in iothread_ids(options):
        command += ['-object', f'iothread,id={name},poll-max-ns='
                    f'{options.poll_max_ns}']
    for disk in range(options.disks):
        if backend.limit is not None:
            command += ['-object', to_json(
                {'qom-type': 'throttle-group', 'id': f'tg{disk}',
                 'limits': {'iops-total': backend.limit}})]
        for node in nodes(backend, options,
                          disk_part(backend, options, part, disk), disk):
            command += ['-blockdev', to_json(node)]
        command += ['-device', device(subject, options, disk=disk)]
    command += idle_disks(subject, options)
    return command + ['-qmp', f'unix:{qmp_path},server=on,wait=off']


# ---- the driver

def driver_options(options: Options, pin: List[int]) -> List[str]:
    """The driver with those of its session's options that suit all."""
    command = [DRIVER, '--queues', str(options.queues),
               '--queue-size', str(options.queue_size),
               '--ring', options.ring,
               '--memory', str(options.memory_mib())]
    if options.in_order:
        command.append('--in-order')
    if not options.indirect:
        command.append('--no-indirect')
    if not options.event_idx:
        command.append('--no-event-idx')
    if pin:
        command += ['--cpu', str(pin[0])]
    return command


def driver_command(subject: Subject, options: Options, pin: List[int],
                   qemu: List[str]) -> List[str]:
    """The driver with its session's options, for one subject."""
    command = driver_options(options, pin)
    if subject.kind == 'vhost-user':
        # Its threads are not ours to pin.
        command += ['--vhost-user', subject.path]
        if subject.hold:
            command.append('--hold')
        if subject.huge_pages:
            command.append('--huge-pages')
        if options.event_idx and not subject.event_idx:
            command.append('--no-event-idx')
        return command
    if options.disks > 1:
        command += ['--disks', str(options.disks)]
    if options.idle_disks and subject.idle:
        command += ['--idle-disks', str(options.idle_disks)]
    if pin:
        command += ['--iothread-cpu', ','.join(map(str, pin[1:]))]
    return command + ['--iothreads', ','.join(iothread_ids(options)),
                      '--', *qemu]


def run_words(load: Workload, options: Options, seed: int,
              region_mib: Optional[int] = None) -> List[str]:
    """A line for the driver."""
    words = ['--rw', load.rw, '--pattern', load.pattern, '--bs', str(load.bs),
             '--depth', str(load.depth), '--wait', load.wait,
             '--warmup-ms', str(options.warmup_ms),
             '--time-ms', str(options.time_ms), '--seed', str(seed)]
    if load.rw == 'mixed':
        words += ['--write-percent', str(load.write_percent)]
    if options.verify:
        words.append('--verify')
    if region_mib is not None:
        words += ['--region-mib', str(region_mib)]
    return words
