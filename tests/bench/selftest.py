# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The benchmark as a test: every backend under load with verified data, without a
look at how fast it is. Prints "ok NAME", "not ok NAME: REASON" and
"skip NAME: REASON" for scripts/check.

That the instrument complains is tested, too: by data that was changed behind
its back, requests that fail or never end, a QEMU that dies, and a data plane
that does not serve.
"""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import replace
from typing import Callable, Iterator, List, Optional

import host
import images
import subjects
from fio import FioSession
from images import ImageError
from lab import DISKS, Lab
from options import BACKENDS, Options
from plan import Workload
from session import DriverSession, SessionError, last_words
from subjects import Backend, Subject

SIZE_MIB = 32
LOAD = Workload('mixed', 'random', 4096, 32, 'poll', 50)

#: what else our ring can be asked for: name, options, load
VARIANTS = (
    ('without indirect descriptors', {'indirect': False}, {}),
    ('without EVENT_IDX', {'event_idx': False}, {}),
    ('without EVENT_IDX, notified', {'event_idx': False}, {'wait': 'notify'}),
    ('without polling', {'poll_max_ns': 0}, {'wait': 'notify'}),
    ('depth 1', {}, {'depth': 1}),
    ('depth 128', {}, {'depth': 128}),
    ('sequential, 64 KiB', {}, {'pattern': 'sequential', 'bs': 65536}),
    ('two queues', {'queues': 2}, {}),
    ('two queues on two IOThreads', {'queues': 2, 'iothreads': 2}, {}),
    ('three disks of two queues, one idle, on two IOThreads',
     {'disks': 3, 'queues': 2, 'iothreads': 2, 'idle_disks': 1}, {}),
    ('two disks, notified', {'disks': 2}, {'wait': 'notify'}),
)

#: what the driver alone is measured with: name, options, load
DRIVER_VARIANTS = (
    ('split ring', {}, {}),
    ('split ring, depth 1', {}, {'depth': 1}),
    ('split ring, writes', {}, {'rw': 'write'}),
    ('split ring, mixed', {}, {'rw': 'mixed'}),
    ('split ring without indirect descriptors', {'indirect': False}, {}),
    ('split ring without EVENT_IDX', {'event_idx': False}, {}),
    ('split ring, sequential, 64 KiB', {},
     {'pattern': 'sequential', 'bs': 65536}),
    ('split ring, in order', {'in_order': True}, {}),
    ('split ring, in order, without indirect descriptors',
     {'in_order': True, 'indirect': False}, {}),
    ('packed ring', {'ring': 'packed'}, {}),
    ('packed ring, mixed', {'ring': 'packed'}, {'rw': 'mixed'}),
    ('packed ring without indirect descriptors',
     {'ring': 'packed', 'indirect': False}, {}),
    ('packed ring, in order', {'ring': 'packed', 'in_order': True}, {}),
    ('four queues', {'queues': 4}, {}),
)

#: likewise, of a packed ring
PACKED_VARIANTS = (
    ('packed ring', {}, {}),
    ('packed ring, notified', {}, {'wait': 'notify'}),
    ('packed ring without indirect descriptors', {'indirect': False}, {}),
    ('packed ring without indirect descriptors, notified',
     {'indirect': False}, {'wait': 'notify'}),
    ('packed ring without EVENT_IDX', {'event_idx': False}, {}),
    ('packed ring without EVENT_IDX, notified', {'event_idx': False},
     {'wait': 'notify'}),
    ('packed ring, depth 1', {}, {'depth': 1}),
    ('packed ring, depth 256', {}, {'depth': 256}),
    ('packed ring, two queues on two IOThreads',
     {'queues': 2, 'iothreads': 2}, {}),
)

#: with VIRTIO_F_IN_ORDER, of both formats
IN_ORDER_VARIANTS = (
    ('in order', {}, {}),
    ('in order without indirect descriptors, notified', {'indirect': False},
     {'wait': 'notify'}),
    ('in order, packed ring', {'ring': 'packed'}, {}),
    ('in order, packed ring without indirect descriptors, notified',
     {'ring': 'packed', 'indirect': False}, {'wait': 'notify'}),
)


class Report:
    """The lines for scripts/check."""

    def __init__(self) -> None:
        self.failed = 0

    def run(self, name: str, test: Callable[[], None]) -> None:
        """One test, which raises if it fails."""
        try:
            test()
        except host.HostError as error:
            print(f'skip {name}: {error}', flush=True)
        except (SessionError, ImageError, AssertionError, OSError) as error:
            self.failed += 1
            text = str(error)
            if getattr(error, 'log', None):
                text += f' ({last_words(error.log)[:300]}; see {error.log})'
            print(f'not ok {name}: ' + text.replace('\n', ' '), flush=True)
        else:
            print(f'ok {name}', flush=True)


def self_options(verify: bool = True, **changes) -> Options:
    """Short runs on small files."""
    return Options(**{'backends': [], 'subjects': ['ours'], 'depth': [128],
                      'bs': [4096], 'time_ms': 50, 'warmup_ms': 10,
                      'size_mib': SIZE_MIB, 'verify': verify, **changes})


def load_backend(subject: Subject, name: str, wait: str) -> None:
    """One session with one run."""
    verify = name != 'null-co'
    options = self_options(verify)
    load = replace(LOAD, wait=wait, rw='mixed' if verify else 'read')
    run_once(options, subject, name, load)


def run_once(options: Options, subject: Subject, name: str, load: Workload
             ) -> None:
    """Opens a session, runs once, and looks who served."""
    with Lab(options, host.choose_pin(options)) as lab:
        with lab.session(subject, lab.backend(name)) as session:
            lab.run(session, load, 1)
            session.check_plane()


# ---- what is the same for all that are compared

def same_terms(subject: Subject) -> None:
    """FLUSH is negotiated, without which each write would be a sync."""
    options = self_options(False)
    with Lab(options, host.choose_pin(options)) as lab:
        for name, accel in (('file-threads', 'qtest'), ('throttled', 'tcg')):
            with lab.session(subject, lab.backend(name)) as session:
                assert session.ready['flush'], 'FLUSH is not negotiated'
                assert session.write_cache(), 'writes go through the cache'
                assert session.accel == accel, \
                    f'{name}: the accelerator is {session.accel}'


def served_directly(subject: Subject) -> None:
    """With x-direct=on null-co's requests are direct, and with off none."""
    options = self_options(False)
    with Lab(options, host.choose_pin(options)) as lab:
        for one, expected in ((subject, True), (replace(
                subject, properties=('x-direct=off',)), False)):
            with lab.session(one, lab.backend('null-co')) as session:
                lab.run(session, replace(LOAD, rw='read'), 1)
                session.check_plane()
                assert (session.note is None) == expected, session.note


# ---- the driver alone

def driver_alone(options: Options, load: Workload) -> None:
    """
    The device, which ends all requests before the driver looks, has counted the
    same; the driver itself complains if not.
    """
    with Lab(options, []) as lab:
        with lab.driver_session() as session:
            result = lab.run(session, load, 1)
    rounds, rest = divmod(result['requests'], load.depth * options.queues)
    assert rounds and not rest, \
        f"{result['requests']} requests are no whole number of sweeps"
    assert sum(count for _, count in result['histogram']) \
        == result['requests'], 'the histogram has another number of requests'
    assert 0 < result['driver_ns_per_request'] < 1e9 / result['iops'], \
        'the driver took longer than all of it'
    assert result['notifications_per_request'] \
        == {'available': 0, 'used': 0}, 'somebody notified'


# ---- a back-end like SPDK

@contextlib.contextmanager
def storage_daemon(lab: Lab, backend: Backend, queues: int
                   ) -> Iterator[subprocess.Popen]:
    """qemu-storage-daemon with the backend's disk, on lab.socket_path()."""
    if not os.access(subjects.STORAGE_DAEMON, os.X_OK):
        raise host.HostError('qemu-storage-daemon is missing: scripts/build '
                             '--tests builds it')
    path = lab.socket_path('daemon')
    command = [subjects.STORAGE_DAEMON, '--object', 'iothread,id=io0']
    for node in subjects.nodes(backend, lab.options, None):
        command += ['--blockdev', subjects.to_json(node)]
    command += ['--export', 'type=vhost-user-blk,id=export,iothread=io0,'
                f'node-name=disk0-node,writable=on,num-queues={queues},'
                f'addr.type=unix,addr.path={path}']
    with open(lab.log_path(backend.name, 'storage-daemon'), 'wb') as log, \
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                             stderr=log) as process:
        try:
            for _ in range(500):
                if os.path.exists(path) or process.poll() is not None:
                    break
                time.sleep(0.02)
            yield process
        finally:
            process.terminate()


def states(pid: int) -> List[str]:
    """Of all threads of a process: t where it is held."""
    found = []
    for tid in os.listdir(f'/proc/{pid}/task'):
        stat = host.read(f'/proc/{pid}/task/{tid}/stat')
        found.append(stat.rsplit(')', 1)[1].split()[0])
    return found


def like_spdk(huge_pages: bool) -> None:
    """
    As with --spdk-socket: verified without EVENT_IDX, with one queue and two;
    all of the back-end's threads stand still but for the runs.
    """
    if huge_pages and host.free_huge_pages() < 128:
        raise host.HostError('there are no 256 MiB of free huge pages')
    for queues, wait in ((1, 'poll'), (2, 'notify')):
        options = self_options(queues=queues, overwrite=True)
        with Lab(options, host.choose_pin(options)) as lab:
            backend = lab.backend('file-threads')
            with storage_daemon(lab, backend, queues) as daemon:
                subject = subjects.vhost_user_subject(
                    'spdk', lab.socket_path('daemon'), event_idx=False,
                    huge_pages=huge_pages, hold=True)
                with lab.session(subject, backend) as session:
                    assert not session.ready['event_idx'], 'with EVENT_IDX'
                    assert session.ready['flush'], 'without FLUSH'
                    for seed in 1, 2:
                        assert set(states(daemon.pid)) == {'t'}, \
                            'it is not held'
                        lab.run(session, replace(LOAD, wait=wait), seed)
                assert 't' not in states(daemon.pid), 'it is still held'


# ---- what has to be noticed

def expect(words: str, action: Callable[[], object]) -> None:
    """
    :raise AssertionError: unless the action fails with these words.
    """
    try:
        action()
    except SessionError as error:
        if words not in str(error):
            raise AssertionError(
                f'the complaint is "{error}", without "{words}"') from None
        return
    raise AssertionError('nobody complained')


class Broken(Lab):
    """A lab whose disk has something between it and its file."""

    def __init__(self, options: Options, node: dict,
                 objects: Optional[List[str]] = None):
        super().__init__(options, host.choose_pin(options))
        self._node = node
        self._objects = objects or []

    def broken_session(self, subject: Subject) -> DriverSession:
        """The session on the backend file-threads."""
        backend = self.backend('file-threads')
        command = subjects.qemu_command(subject, backend, self.options,
                                        self.socket_path('broken'))
        device = command.index('-device')
        command[device:device] = [*self._objects, '-blockdev',
                                  subjects.to_json(self._node)]
        command[command.index('-device') + 1] = subjects.device(
            subject, self.options, self._node['node-name'])
        return DriverSession(
            subjects.driver_command(subject, self.options, self.pin, command),
            self.log_path('file-threads', 'broken'))


def wrong_data(subject: Subject) -> None:
    """One byte in each block is changed between writing and reading."""
    options = self_options()
    with Lab(options, host.choose_pin(options)) as lab:
        backend = lab.backend('file-threads')
        with lab.session(subject, backend) as session:
            lab.run(session, LOAD, 1)
            spoil(backend)
            expect('wrong data', lambda: lab.run(
                session, replace(LOAD, rw='read'), 2))


def spoil(backend: Backend) -> None:
    """Another value for some byte of each block."""
    chance = random.Random(1)
    handle = os.open(backend.image.path, os.O_RDWR)
    try:
        for start in range(0, backend.image.size, LOAD.bs):
            place = start + chance.randrange(LOAD.bs)
            byte = os.pread(handle, 1, place)[0]
            os.pwrite(handle, bytes([byte ^ 0x40]), place)
    finally:
        os.close(handle)


def failed_request(subject: Subject) -> None:
    """Reads end with an error."""
    node = {'driver': 'blkdebug', 'node-name': 'broken',
            'image': 'disk0-node',
            'inject-error': [{'event': 'none', 'iotype': 'read', 'errno': 5}]}
    with Broken(self_options(), node) as lab:
        with lab.broken_session(subject) as session:
            expect('request failed', lambda: lab.run(session, LOAD, 1))


def lost_request(subject: Subject) -> None:
    """Requests do not end within any reasonable time."""
    group = {'qom-type': 'throttle-group', 'id': 'hold',
             'limits': {'iops-total': 1, 'iops-size': 512}}
    node = {'driver': 'throttle', 'node-name': 'broken',
            'throttle-group': 'hold', 'file': 'disk0-node'}
    options = self_options(False, bs=[65536])
    with Broken(options, node, ['-object', subjects.to_json(group)]) as lab:
        with lab.broken_session(subject) as session:
            expect('stall', lambda: lab.run(
                session, replace(LOAD, rw='read', bs=65536), 1))


def dead_qemu(subject: Subject) -> None:
    """QEMU, which this driver has started for us, dies within a run."""
    options = self_options(False, time_ms=1500)
    with Lab(options, host.choose_pin(options)) as lab:
        with lab.session(subject, lab.backend('null-co')) as session:
            process = os.pidfd_open(session.ready['pid'])
            killer = threading.Timer(0.3, signal.pidfd_send_signal,
                                     (process, signal.SIGKILL))
            killer.start()
            try:
                expect('QEMU', lambda: lab.run(
                    session, replace(LOAD, rw='read'), 1))
            finally:
                killer.join()
                os.close(process)


def wrong_server(subject: Subject) -> None:
    """The plane serves where it should not, or the other way round."""
    words = 'does not serve' if subject.serving else 'serves a disk'
    other = replace(subject, properties=(
        'x-data-plane=off',) if subject.serving else ())
    options = self_options(False)
    expect(words, lambda: run_once(options, other, 'null-co',
                                   replace(LOAD, rw='read')))


# ---- all of it

def test_backends(report: Report, those: List[Subject]) -> None:
    """Each backend with each subject."""
    for name in BACKENDS:
        for subject in those:
            for wait in ('poll', 'notify'):
                how = 'polled' if wait == 'poll' else 'notified'
                report.run(f'{name}, {subject.name}, {how}',
                           lambda s=subject, n=name, w=wait:
                           load_backend(s, n, w))


def test_variants(report: Report, subject: Subject, variants: tuple,
                  **others) -> None:
    """A ring with each option."""
    for name, changes, load in variants:
        changes = {**changes, **others, 'bs': [load.get('bs', 4096)]}
        options = self_options(
            depth=[load.get('depth', LOAD.depth)], **changes)
        report.run(f'{subject.name}, {name}',
                   lambda o=options, w=replace(LOAD, **load):
                   run_once(o, subject, 'file-threads', w))


def test_driver(report: Report) -> None:
    """The driver alone with each option."""
    for name, changes, load in DRIVER_VARIANTS:
        load = replace(LOAD, **{'rw': 'read', **load})
        options = self_options(False, depth=[load.depth], bs=[load.bs],
                               **changes)
        report.run(f'the driver alone, {name}',
                   lambda o=options, w=load: driver_alone(o, w))


def test_fio() -> None:
    """fio on a small file."""
    subject = subjects.built_in('fio')
    if subject is None:
        raise host.HostError('fio is not installed')
    options = self_options(False)
    with Lab(options, host.choose_pin(options)) as lab:
        session = lab.session(subject, lab.backend('file-io_uring'))
        assert isinstance(session, FioSession)
        with session:
            result = lab.run(session, replace(LOAD, rw='mixed'), 1)
            assert result['iops'] > 0, 'fio did nothing'


def remove_files() -> None:
    """What was written into them is of no use to others."""
    for path in (images.raw_path(DISKS, SIZE_MIB),
                 images.qcow2_path(DISKS, SIZE_MIB)):
        if os.path.exists(path):
            os.unlink(path)


def run() -> int:
    """Returns the exit status."""
    report = Report()
    ours, direct, stock = (subjects.built_in(name)
                           for name in ('ours', 'direct', 'stock'))
    try:
        test_backends(report, [ours, direct, stock])
        for subject in ours, direct, stock:
            report.run(f'{subject.name}, cache and accelerator',
                       lambda s=subject: same_terms(s))
        report.run('direct, its requests', lambda: served_directly(direct))
        test_driver(report)
        report.run('a back-end like SPDK', lambda: like_spdk(False))
        report.run('a back-end like SPDK, huge pages',
                   lambda: like_spdk(True))
        test_variants(report, ours, VARIANTS)
        for subject in ours, direct, stock:
            test_variants(report, subject, PACKED_VARIANTS, ring='packed')
            test_variants(report, subject, IN_ORDER_VARIANTS, in_order=True)
        report.run('fio', test_fio)
        for name, test in (('wrong data', wrong_data),
                           ('a failed request', failed_request),
                           ('a request that does not end', lost_request),
                           ('a QEMU that dies', dead_qemu),
                           ('a plane that does not serve', wrong_server)):
            report.run(f'{name} is noticed', lambda t=test: t(ours))
        report.run('a plane that serves with x-data-plane=off is noticed',
                   lambda: wrong_server(stock))
    finally:
        remove_files()
    return 1 if report.failed else 0
