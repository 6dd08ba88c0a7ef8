# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Each type of job, with the disk as its source and its target, on the disk's
node, below it and above it; and what else is done to the nodes of a disk.

A command that QEMU has and no table here names is a failure, if it works on
block nodes.
"""

import re
from typing import Any, Dict, List, NamedTuple, Tuple

from driver import OUT, Request
from subject import BACKEND, DEVICE, DISK_MIB, MIB, Subject, pattern
from tables import Row

SIZE = DISK_MIB * MIB
KEEP = {'job-id': 'j', 'auto-dismiss': False}


class Job(NamedTuple):
    """
    A job whose source is the disk.

    end: see Subject.end_job()
    target: make an empty node "t" for it
    """
    name: str
    command: str
    arguments: Dict[str, Any]
    end: str = 'finish'
    target: bool = True


def syncs() -> List[Tuple[str, Dict[str, Any]]]:
    """All that backups know; "b" is a bitmap of the disk's node."""
    modes: List[Tuple[str, Dict[str, Any]]] = [
        (sync, {'sync': sync}) for sync in ('full', 'top', 'none')]
    modes.append(('incremental', {'sync': 'incremental', 'bitmap': 'b'}))
    for mode in ('never', 'on-success', 'always'):
        modes.append((f'bitmap {mode}', {
            'sync': 'bitmap', 'bitmap': 'b', 'bitmap-mode': mode}))
    modes.append(('full and bitmap', {'sync': 'full', 'bitmap': 'b',
                                      'bitmap-mode': 'always'}))
    return modes


def backups() -> List[Job]:
    """To a node and to a file."""
    table = []
    for name, sync in syncs():
        end = 'cancel' if name == 'none' else 'finish'
        table.append(Job(f'blockdev-backup {name}', 'blockdev-backup',
                         {'device': 'n0', 'target': 't', **sync}, end))
        table.append(Job(f'drive-backup {name}', 'drive-backup',
                         {'device': 'n0', 'target': 'copy.img',
                          'format': 'qcow2', **sync}, end, False))
    table.append(Job('blockdev-backup compressed', 'blockdev-backup',
                     {'device': 'n0', 'target': 't', 'sync': 'full',
                      'compress': True}))
    table.append(Job('drive-backup to what is there', 'drive-backup',
                     {'device': 'n0', 'target': 'n0.img', 'sync': 'full',
                      'mode': 'existing', 'format': 'qcow2'}, 'finish', False))
    return table


def mirrors() -> List[Job]:
    """To a node and to a file."""
    table = []
    for sync in ('full', 'top', 'none'):
        for copy in ('background', 'write-blocking'):
            for end in ('complete', 'cancel when ready', 'give up'):
                table.append(Job(
                    f'blockdev-mirror {sync} {copy}, {end}',
                    'blockdev-mirror',
                    {'device': 'n0', 'target': 't', 'sync': sync,
                     'copy-mode': copy}, end))
    for sync in ('full', 'top', 'none'):
        table.append(Job(
            f'drive-mirror {sync}', 'drive-mirror',
            {'device': 'n0', 'target': 'copy.img', 'format': 'qcow2',
             'node-name': 'copy', 'sync': sync}, 'complete', False))
    table.append(Job('blockdev-mirror that replaces', 'blockdev-mirror',
                     {'device': 'n0', 'target': 't', 'sync': 'full',
                      'replaces': 'n0'}, 'complete'))
    for sync in ('incremental', 'bitmap'):
        table.append(Job(f'blockdev-mirror {sync}', 'blockdev-mirror',
                         {'device': 'n0', 'target': 't', 'sync': sync}))
    return table


#: the disk's chain: base, middle, n0
SOURCES = backups() + mirrors() + [
    Job('block-commit active', 'block-commit', {'device': 'n0'}, 'complete',
        False),
    Job('block-commit active to the next', 'block-commit',
        {'device': 'n0', 'base-node': 'middle'}, 'complete', False),
    Job('block-commit active, cancelled', 'block-commit', {'device': 'n0'},
        'cancel when ready', False),
    Job('block-commit intermediate', 'block-commit',
        {'device': 'n0', 'top-node': 'middle', 'base-node': 'base'},
        'finish', False),
    Job('block-stream', 'block-stream', {'device': 'n0'}, 'finish', False),
    Job('block-stream to a base', 'block-stream',
        {'device': 'n0', 'base-node': 'base'}, 'finish', False),
    Job('block-stream to a bottom', 'block-stream',
        {'device': 'n0', 'bottom': 'middle'}, 'finish', False),
    Job('block-stream intermediate', 'block-stream', {'device': 'middle'},
        'finish', False),
    Job('blockdev-backup of the backing file', 'blockdev-backup',
        {'device': 'middle', 'target': 't', 'sync': 'full'}),
    Job('blockdev-mirror of the backing file', 'blockdev-mirror',
        {'device': 'middle', 'target': 't', 'sync': 'full'}, 'complete'),
    Job('blockdev-backup of the file', 'blockdev-backup',
        {'device': 'n0-file', 'target': 't', 'sync': 'full'}),
    Job('blockdev-backup to itself', 'blockdev-backup',
        {'device': 'n0', 'target': 'n0', 'sync': 'full'}),
    Job('blockdev-mirror to its backing file', 'blockdev-mirror',
        {'device': 'n0', 'target': 'middle', 'sync': 'full'}, 'complete',
        False),
    Job('blockdev-mirror to its file', 'blockdev-mirror',
        {'device': 'n0', 'target': 'n0-file', 'sync': 'full'}),
]


def chain(subject: Subject) -> List[dict]:
    """Options of "n0", an overlay of "middle", an overlay of "base"."""
    overlay = ('-F', 'qcow2', '-b')
    return [subject.node('base', 'qcow2'),
            subject.node('middle', 'qcow2', *overlay, 'base.img',
                         backing='base'),
            subject.node('n0', 'qcow2', *overlay, 'middle.img',
                         backing='middle')]


def image_names(subject: Subject, command: str = '', end: str = '') -> None:
    """All images that exist by now, but for what a job has left undone."""
    undone: Tuple[str, ...] = ()
    if 'cancel' in end and command.endswith('mirror'):
        undone = ('t.img',)
    elif 'cancel' in end and command == 'block-commit':
        undone = ('base.img', 'middle.img')
    subject.images(*(name for name in subject.files()
                     if name.endswith('.img') and name not in undone))


def source(subject: Subject, job: Job) -> None:
    """The guest writes before, during and behind the job."""
    nodes = chain(subject)
    if job.target:
        nodes.append(subject.node('t', 'qcow2'))
    subject.boot(nodes, [subject.device()])
    if 'bitmap' in job.arguments:
        subject.must('block-dirty-bitmap-add', node='n0', name='b')
    subject.start()
    subject.io()
    if subject.cmd(job.command, {**KEEP, **job.arguments}):
        subject.io()
        subject.end_job('j', job.end)
        if 'cancel' in job.end:
            # How much it holds is left to chance.
            subject.cmd('blockdev-del', node_name='t')
    subject.io()
    subject.read_all()
    subject.finish()
    image_names(subject, job.command, job.end)


#: what writes to the disk's node "n0"; "s" is another
TARGETS: Dict[str, Tuple[str, Dict[str, Any], str]] = {
    **{f'blockdev-backup {name}': (
        'blockdev-backup', {'device': 's', 'target': 'n0', **sync},
        'cancel' if name == 'none' else 'finish') for name, sync in syncs()},
    **{f'blockdev-mirror {sync}': (
        'blockdev-mirror', {'device': 's', 'target': 'n0', 'sync': sync},
        'complete') for sync in ('full', 'top', 'none')},
    'drive-backup to its file': (
        'drive-backup', {'device': 's', 'target': 'n0.img', 'sync': 'full',
                         'mode': 'existing', 'format': 'raw'}, 'finish'),
    'drive-mirror to its file': (
        'drive-mirror', {'device': 's', 'target': 'n0.img', 'sync': 'full',
                         'mode': 'existing', 'format': 'raw'}, 'complete'),
    'blockdev-create on it': (
        'blockdev-create', {'options': {'driver': 'qcow2', 'file': 'n0',
                                        'size': SIZE}}, 'finish'),
    'amend': (
        'x-blockdev-amend', {'node-name': 'n0', 'options': {
            'driver': 'qcow2'}}, 'finish'),
    'block-commit into it': (
        'block-commit', {'device': 'above'}, 'complete'),
    'block-stream into it': (
        'block-stream', {'device': 'n0'}, 'finish'),
}

#: the disk, and what the guest has done to it, when it becomes a target
STATES: Dict[str, Dict[str, Any]] = {
    'running': {},
    'shared': {'share-rw': True},
    'not started': {},
    'shared, stopped': {'share-rw': True},
    'stopped': {},
    'filtered, shared': {'share-rw': True, 'drive': 'above'},
}


def target(subject: Subject, name: str, state: str) -> None:
    """A job of another node writes to what the guest has."""
    command, arguments, end = TARGETS[name]
    form = 'raw' if 'its file' in name else 'qcow2'
    nodes = [subject.node('n0', form), subject.node('s', form)]
    if 'commit' in name:
        nodes.append({**subject.node('above', 'qcow2', '-F', form, '-b',
                                     'n0.img'), 'backing': 'n0'})
    elif 'filtered' in state:
        nodes.append({'driver': 'raw', 'node-name': 'above', 'file': 'n0'})
    # The source is where the target is, as both are disks.
    subject.boot(nodes, [subject.device(**STATES[state]), subject.device(
        id='d1', drive='s', addr='5')])
    if 'bitmap' in arguments:
        subject.must('block-dirty-bitmap-add', node='s', name='b')
    if 'not started' not in state:
        other = subject.find(5, number=1)
        other.start()
        subject.io(other, served='d1')
    if 'not started' not in state:
        subject.start()
        subject.io()
    if 'stopped' in state:
        subject.must('stop')
    for _ in range(2):
        keep = KEEP if command != 'blockdev-create' \
            and not command.startswith('x-') else {'job-id': 'j'}
        if subject.cmd(command, {**keep, **arguments}):
            subject.end_job('j', end)
    if 'stopped' in state:
        subject.must('cont')
    if 'not started' in state:
        subject.start()
    subject.io()
    subject.read_all()
    subject.finish()
    image_names(subject)


#
# Filters
#

#: compress is not here: jobs on it hang QEMU, and whether a write to what is
#: allocated already fails is left to chance
FILTERS: Dict[str, Dict[str, Any]] = {
    'throttle': {'driver': 'throttle', 'throttle-group': 'group'},
    'copy-on-read': {'driver': 'copy-on-read'},
    'raw': {'driver': 'raw'},
}
#: on the filter, and on the node below it
FILTERED = [
    Job(command + where, command, {'device': device, **more}, end, bool(more))
    for command, more, end in (
        ('blockdev-backup', {'target': 't', 'sync': 'full'}, 'finish'),
        ('blockdev-mirror', {'target': 't', 'sync': 'full'}, 'complete'),
        ('block-commit', {}, 'complete'),
        ('block-stream', {}, 'finish'))
    for where, device in (('', 'top'), (' below', 'n0'))]


def filtered(subject: Subject, name: str, job: Job) -> None:
    """The disk stands on a filter."""
    nodes = [*subject.chain(),
             {**FILTERS[name], 'node-name': 'top', 'file': 'n0'}]
    if job.target:
        nodes.append(subject.node('t', 'qcow2'))
    subject.boot(nodes, [subject.device(drive='top')],
                 ['-object', 'throttle-group,id=group'])
    subject.start()
    subject.io()
    if subject.cmd(job.command, {**KEEP, **job.arguments}):
        subject.io()
        subject.end_job('j', job.end)
    subject.io()
    subject.read_all()
    subject.finish()
    image_names(subject)


#
# A disk that comes when the job is there
#

#: node that the disk gets, and command, arguments and end of what runs by then
Plugged = Tuple[str, str, Dict[str, Any], str]


def copying(what: str, command: str, sync: str, end: str
            ) -> Dict[str, Plugged]:
    """Each node of a job that copies."""
    job = {'device': 'n0', 'target': 't', 'sync': sync}
    with_filter = {**job, 'filter-node-name': 'filter'}
    return {f'source of a {what}': ('n0', command, with_filter, end),
            f'filter of a {what}': ('filter', command, with_filter, end),
            f'target of a {what}': ('t', command, job, end)}


PLUGGED: Dict[str, Plugged] = {
    **copying('mirror', 'blockdev-mirror', 'full', 'complete'),
    **copying('backup', 'blockdev-backup', 'none', 'cancel'),
    'target of a stream': (
        'n0', 'block-stream', {'device': 'n0', 'speed': 1}, 'cancel'),
    'base of a stream': (
        'base', 'block-stream',
        {'device': 'n0', 'base-node': 'base', 'speed': 1}, 'cancel'),
    'top of a commit': (
        'n0', 'block-commit', {'device': 'n0', 'speed': 1}, 'cancel'),
    'middle of a commit': (
        'middle', 'block-commit', {'device': 'n0', 'speed': 1}, 'cancel'),
    'base of a commit': (
        'base', 'block-commit', {'device': 'n0', 'speed': 1}, 'cancel'),
    'overlay of a commit': (
        'n0', 'block-commit', {'device': 'n0', 'top-node': 'middle',
                               'speed': 1}, 'cancel'),
    'what a mirror replaces': (
        'child', 'blockdev-mirror',
        {'device': 'quorum', 'target': 't', 'sync': 'full',
         'replaces': 'child'}, 'cancel'),
}
HOW: Dict[str, Dict[str, Any]] = {
    'alone': {}, 'shared': {'share-rw': True}, 'read-only': {},
}


def plugged(subject: Subject, name: str, how: str) -> None:
    """The disk is plugged while a job runs on its node."""
    node, command, arguments, end = PLUGGED[name]
    nodes = [*chain(subject), subject.node('t', 'qcow2'),
             subject.node('child', 'qcow2')]
    if 'quorum' in str(arguments):
        nodes.append({'driver': 'quorum', 'node-name': 'quorum',
                      'children': ['child', 'n0'], 'vote-threshold': 1,
                      'read-pattern': 'fifo'})
    subject.boot(nodes)
    if command in ('block-stream', 'block-commit'):
        # So much to copy that it does not end by itself, at this speed.
        subject.hmp('qemu-io middle "write 0 3M"')
    subject.must(command, {**KEEP, **arguments})
    device = subject.device(drive=node, **HOW[how])
    if how == 'read-only':
        subject.must('blockdev-add', {
            'driver': 'raw', 'node-name': 'view', 'file': node,
            'read-only': True})
        device['drive'] = 'view'
    if subject.cmd('device_add', device):
        subject.start()
        subject.io()
    subject.end_job('j', end)
    if subject.disk:
        subject.io()
        subject.look()
        subject.unplug()
        subject.disk = None
    subject.finish()
    image_names(subject, command, end)


#
# Other commands
#

def named(name: str, /, **arguments) -> Tuple[str, Dict[str, Any]]:
    """A command; "_" is "-"."""
    return name, {key.replace('_', '-'): value
                  for key, value in arguments.items()}


NODE = {'node-name': 'n0'}
LIMIT = {'iops_rd': 0, 'iops_wr': 0, 'bps': 0, 'bps_rd': 0, 'bps_wr': 0}

#: what is done to the nodes or the device of a running disk, in this order;
#: the guest makes its requests behind each
COMMANDS: Dict[str, List[Tuple[str, Dict[str, Any]]]] = {
    'block_resize': [
        ('block_resize', {**NODE, 'size': size})
        for size in (8 * MIB, SIZE, SIZE + 512, SIZE + 1, 0, -1, 6 * MIB)],
    'block_resize by the device': [
        ('block_resize', {'device': name, 'size': 8 * MIB})
        for name in (DEVICE, 'n0', BACKEND)],
    'block_set_io_throttle': [
        ('block_set_io_throttle', {'id': BACKEND, 'iops': iops, **LIMIT,
                                   **more})
        for iops, more in ((100000, {}), (0, {}), (-1, {}),
                           (10000, {'group': 'g'}), (0, {'iops_max': 5}))],
    'block-latency-histogram-set': [
        ('block-latency-histogram-set', {'id': BACKEND, **more})
        for more in ({'boundaries': [10, 100]}, {}, {'boundaries': [5, 1]},
                     {'boundaries-read': [1]})],
    'block-set-write-threshold': [
        ('block-set-write-threshold', {**NODE, 'write-threshold': value})
        for value in (4096, 0, 1 << 40)],
    'block-dirty-bitmap': [
        named('block-dirty-bitmap-add', node='n0', name='b',
              persistent=True),
        named('block-dirty-bitmap-add', node='n0', name='b'),
        named('block-dirty-bitmap-add', node='n0', name='c', disabled=True),
        named('block-dirty-bitmap-disable', node='n0', name='b'),
        named('block-dirty-bitmap-enable', node='n0', name='c'),
        named('block-dirty-bitmap-merge', node='n0', target='c',
              bitmaps=['b']),
        named('block-dirty-bitmap-clear', node='n0', name='c'),
        named('x-debug-block-dirty-bitmap-sha256', node='n0', name='b'),
        named('block-dirty-bitmap-remove', node='n0', name='c')],
    'blockdev-reopen': [
        named('blockdev-reopen', options=[
            {'driver': 'qcow2', 'node-name': 'n0', 'file': 'n0-file',
             'backing': 'base', 'discard': 'unmap', **more}])
        for more in ({'lazy-refcounts': True}, {'read-only': True},
                     {'cache': {'no-flush': True}}, {'backing': None}, {},
                     {'file': 't'})],
    'blockdev-snapshot': [
        named('blockdev-snapshot', node='n0', overlay='t'),
        named('blockdev-snapshot', node='n0', overlay='t2'),
        named('blockdev-snapshot', node='t', overlay='n0'),
        named('blockdev-del', node_name='n0')],
    'blockdev-snapshot-sync': [
        named('blockdev-snapshot-sync', node_name='n0',
              snapshot_file='s1.img', snapshot_node_name='s1',
              format='qcow2'),
        named('blockdev-snapshot-sync', node_name='n0',
              snapshot_file='s2.img', snapshot_node_name='s2'),
        named('blockdev-snapshot-sync', device='n0', snapshot_file='s3.img')],
    'blockdev-snapshot-internal-sync': [
        named('blockdev-snapshot-internal-sync', device='n0', name='one'),
        named('blockdev-snapshot-internal-sync', device='n0', name='one'),
        named('blockdev-snapshot-internal-sync', device='n0', name=''),
        named('blockdev-snapshot-delete-internal-sync', device='n0',
              name='one'),
        named('blockdev-snapshot-delete-internal-sync', device='n0',
              name='one')],
    'transaction': [
        named('transaction', actions=[
            {'type': 'blockdev-snapshot-internal-sync',
             'data': {'device': 'n0', 'name': 'two'}},
            {'type': 'block-dirty-bitmap-add',
             'data': {'node': 'n0', 'name': 'b'}}]),
        named('transaction', actions=[
            {'type': 'block-dirty-bitmap-clear',
             'data': {'node': 'n0', 'name': 'b'}},
            {'type': 'block-dirty-bitmap-clear',
             'data': {'node': 'n0', 'name': 'nothing'}}]),
        named('transaction', actions=[{'type': 'abort', 'data': {}}])],
    'blockdev-set-active': [
        named('blockdev-set-active', node_name='n0', active=True),
        named('blockdev-set-active', active=True)],
    'x-blockdev-set-iothread': [
        named('x-blockdev-set-iothread', node_name=node, iothread=iothread,
              **more)
        for node in ('n0', 'base', 't') for iothread in ('io0', 'io1', None)
        for more in ({}, {'force': True})],
    'x-blockdev-change': [
        named('x-blockdev-change', parent='n0', node='t'),
        named('x-blockdev-change', parent='n0', child='file')],
    'medium': [
        (name, {'id': BACKEND, **more}) for name, more in (
            ('eject', {}), ('eject', {'force': True}),
            ('blockdev-open-tray', {}), ('blockdev-close-tray', {}),
            ('blockdev-remove-medium', {}),
            ('blockdev-insert-medium', {'node-name': 't'}),
            ('blockdev-change-medium', {'filename': 't.img'}),
            ('blockdev-change-medium', {'filename': 't.img', 'force': True}))],
    'the same by the device': [
        (name, {'id': DEVICE, **more}) for name, more in (
            ('eject', {}), ('blockdev-open-tray', {}),
            ('blockdev-change-medium', {'filename': 't.img'}))],
    'blockdev-del': [
        named('blockdev-del', node_name=node)
        for node in ('n0', 'base', 'n0-file', 't', 'nothing')],
    'drive': [
        ('qom-set', {'path': DEVICE, 'property': 'drive', 'value': value})
        for value in ('t', 'n0', 'nowhere', 'base', 'n0')],
    'properties of a running device': [
        ('qom-set', {'path': path, 'property': name, 'value': value})
        for path in (DEVICE, BACKEND)
        for name, value in (('num-queues', 1), ('serial', 'x'),
                            ('share-rw', True), ('iothread', 'io1'),
                            ('bootindex', 3), ('x-data-plane', 'on'),
                            ('nothing', 1))],
    'objects in use': [
        named('object-del', id='io0'), named('object-del', id='io1'),
        named('object-add', qom_type='iothread', id='io0'),
        ('qom-set', {'path': '/objects/io0', 'property': 'poll-max-ns',
                     'value': 0})],
    'blockdev-create': [
        named('blockdev-create', job_id='j', options={
            'driver': 'qcow2', 'file': node, 'size': SIZE})
        for node in ('n0', 'n0-file', 'base')] + [
        named('job-dismiss', id='j')],
    'x-blockdev-amend': [
        named('x-blockdev-amend', job_id='j', node_name=node,
              options={'driver': driver})
        for node in ('n0', 'n0-file') for driver in ('qcow2', 'raw')],
    'export': [
        named('nbd-server-start', addr={
            'type': 'unix', 'data': {'path': 'nbd.socket'}}),
        named('block-export-add', type='nbd', id='e', node_name='n0'),
        named('block-export-add', type='nbd', id='w', node_name='n0',
              writable=True),
        named('block-export-add', type='nbd', id='f', node_name='n0-file'),
        named('block-export-del', id='e'),
        named('nbd-server-stop')],
    'change-backing-file': [
        named('change-backing-file', device='n0', image_node_name='n0',
              backing_file='base.img')],
    'jobs that are not there': [
        named(name, device='j') for name in (
            'block-job-cancel', 'block-job-pause', 'block-job-resume',
            'block-job-complete', )] + [
        named('block-job-set-speed', device='j', speed=1)],
    'stop and go': [
        named('stop'), named('cont'), named('stop'), named('system_reset'),
        named('cont')],
    'queries': [
        named('query-block'), named('query-blockstats', query_nodes=True),
        named('x-query-virtio'),
        ('x-query-virtio-status', {'path': BACKEND}),
        ('query-stats-schemas', {})],
}


def commands(subject: Subject, name: str) -> None:
    """Each of them, and requests behind each."""
    subject.boot([*subject.chain(), subject.node('t', 'qcow2'),
                  subject.node('t2', 'qcow2')], [subject.device()])
    subject.start()
    subject.io()
    for command, arguments in COMMANDS[name]:
        subject.cmd(command, arguments)
        if arguments.get('job-id') == 'j' and subject.job('j'):
            subject.wait_job('j', 'concluded')
            subject.cmd('job-dismiss', id='j')
        if command in ('stop', 'system_reset') and subject.status(
                ) != 'running':
            continue
        if command == 'cont':
            subject.start()
        subject.io()
        subject.look()
    subject.finish()
    image_names(subject)


HMP: Dict[str, List[str]] = {
    'qemu-io': ['qemu-io n0 "write 0 4k"', 'qemu-io n0 "read 0 4k"',
                f'qemu-io -d {DEVICE} "read 0 4k"',
                f'qemu-io -d {DEVICE}/virtio-backend "write 0 4k"'],
    'commit': ['commit n0', 'commit all', f'commit {DEVICE}'],
    'block_resize': ['block_resize n0 8', f'block_resize {DEVICE} 8'],
    'savevm': ['savevm one', 'info snapshots', 'delvm one'],
    'info': ['info block', 'info block -v', 'info block-jobs'],
    'eject': [f'eject {BACKEND}', f'eject -f {BACKEND}', 'eject n0'],
    'change': [f'change {BACKEND} t.img', 'change n0 t.img'],
    'drive_del': ['drive_del n0', f'drive_del {DEVICE}',
                  f'drive_del {BACKEND}', 'drive_del t', 'drive_del base'],
    'drive_add': ['drive_add 0 if=none,file=t.img,id=again,format=qcow2',
                  'drive_add 0 if=none,file=n0.img,id=twice,format=qcow2'],
    'snapshot': ['snapshot_blkdev n0 s1.img qcow2',
                 'snapshot_blkdev_internal n0 one',
                 'snapshot_delete_blkdev_internal n0 one'],
}


def human(subject: Subject, name: str) -> None:
    """Commands of the human monitor."""
    subject.boot([*subject.chain(), subject.node('t', 'qcow2')],
                 [subject.device()])
    subject.start()
    subject.io()
    for line in HMP[name]:
        subject.hmp(line)
        subject.io()
    subject.finish()
    image_names(subject)


def drive_del(subject: Subject) -> None:
    """A -drive is taken away from the disk, which stays."""
    subject.image('d.img', 'qcow2')
    subject.boot([subject.node('n0')], devices=[subject.device(drive='drive0')], options=[
        '-drive', 'if=none,id=drive0,file=d.img,format=qcow2'])
    subject.start()
    subject.io()
    subject.cmd('blockdev-snapshot-internal-sync', device='drive0', name='a')
    subject.cmd('drive-mirror', device='drive0', target='copy.img',
                sync='full', format='qcow2')
    subject.qmp.event('BLOCK_JOB_READY', device='drive0')
    subject.io()
    subject.cmd('block-job-complete', device='drive0')
    subject.qmp.event('BLOCK_JOB_COMPLETED', device='drive0')
    subject.io()
    subject.hmp('drive_del drive0')
    subject.cmd('x-blockdev-set-iothread', node_name='n0', iothread='io0')
    subject.cmd('qom-set', path=DEVICE, property='drive', value='n0')
    subject.run('write to nothing', [Request(OUT, 0, pattern(1, 4096))])
    subject.look()
    subject.unplug()
    subject.disk = None
    subject.finish('d.img', 'copy.img')


def set_inactive(subject: Subject) -> None:
    """Of a VM that is stopped."""
    subject.boot(subject.chain(), [subject.device()])
    subject.start()
    subject.io()
    subject.must('stop')
    subject.cmd('blockdev-set-active', node_name='n0', active=False)
    subject.look()
    subject.cmd('blockdev-set-active', node_name='n0', active=True)
    subject.must('cont')
    subject.io()
    subject.finish('n0.img')


#: commands on nodes, disks and jobs that stand in no table above, and why
ELSEWHERE = {
    'block-job-change', 'block-job-dismiss', 'block-job-finalize',
    'block-stream', 'blockdev-add', 'blockdev-backup', 'blockdev-mirror',
    'block-commit', 'drive-backup', 'drive-mirror', 'job-cancel',
    'job-complete', 'job-finalize', 'job-pause', 'job-resume', 'job-dismiss',
    'query-block-exports', 'query-block-jobs', 'query-jobs',
    'query-named-block-nodes', 'query-xen-replication-status',
    'xen-set-replication', 'x-debug-query-block-graph', 'nbd-server-add',
    'nbd-server-remove', 'snapshot-save', 'snapshot-load', 'snapshot-delete',
    'device_add', 'device_del', 'device-sync-config',
    'block-latency-histogram-set',
}
BLOCK = re.compile(r'(?!query-)(x-)?(block|nbd|drive-|snapshot-|eject|change-|'
                   r'job-|transaction|device_|device-sync)')


def enumerate_commands(subject: Subject) -> None:
    """Each that works on nodes is tried somewhere."""
    subject.boot()
    names = [item['name'] for item in subject.qmp.cmd('query-commands')]
    subject.finish()
    tried = {command for steps in COMMANDS.values() for command, _ in steps}
    tried |= {job.command for job in SOURCES} | ELSEWHERE
    tried |= {command for command, _, _ in TARGETS.values()}
    missing = [name for name in names
               if BLOCK.match(name) and name not in tried]
    subject.same(tried, list(tried) + missing, 'commands on block nodes')


def rows() -> List[Row]:
    """All of them."""
    table = [Row(f'source: {job.name}',
                 lambda subject, job=job: source(subject, job))
             for job in SOURCES]
    for state in STATES:
        table += [Row(f'target ({state}): {name}',
                      lambda subject, name=name, state=state:
                      target(subject, name, state))
                  for name in TARGETS
                  if not ('filtered' in state and 'commit' in name)]
    for name in FILTERS:
        table += [Row(f'on {name}: {job.name}',
                      lambda subject, name=name, job=job:
                      filtered(subject, name, job))
                  for job in FILTERED]
    for how in HOW:
        table += [Row(f'plugged ({how}): {name}',
                      lambda subject, name=name, how=how:
                      plugged(subject, name, how))
                  for name in PLUGGED]
    table += [Row(f'command: {name}',
                  lambda subject, name=name: commands(subject, name))
              for name in COMMANDS]
    table += [Row(f'monitor: {name}',
                  lambda subject, name=name: human(subject, name))
              for name in HMP]
    table += [Row('drive_del of a drive', drive_del),
              Row('blockdev-set-active of a stopped disk', set_inactive),
              Row('commands that QEMU has', enumerate_commands)]
    return table
