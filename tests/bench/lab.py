# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Puts together what a measurement needs: images, sockets, logs, sessions.

Use as 'with Lab(...) as lab'; what is only for this run is removed at its end.
"""

import contextlib
import os
import shutil
import tempfile
from typing import Dict, Iterator, List, Optional, Tuple, Union

import host
import images
import subjects
from fio import FioSession
from images import Image
from options import VERIFY_MIB, Options
from plan import Workload
from session import DriverSession, SessionError
from subjects import Backend, Subject

DISKS = os.path.join(subjects.BUILD, 'bench', 'disks')
RESULTS = os.path.join(subjects.BUILD, 'bench', 'results')
LOGS = os.path.join(subjects.BUILD, 'log', 'bench')

#: beyond a run's own time; and what it takes at most to write what is verified
RUN_TIMEOUT = 60
PREPARE_TIMEOUT = 300

Session = Union[DriverSession, FioSession]


class Lab:
    """
    :param options: what is measured
    :param pin: CPUs of driver and IOThreads; empty for none
    """

    def __init__(self, options: Options, pin: List[int]):
        self.options = options
        self.pin = pin
        self._images: Dict[str, Image] = {}
        self._sockets = ''

    def __enter__(self) -> 'Lab':
        os.makedirs(LOGS, exist_ok=True)
        # A socket's path must be short.
        self._sockets = tempfile.mkdtemp(prefix='bench.')
        return self

    def __exit__(self, *_exc) -> None:
        shutil.rmtree(self._sockets, ignore_errors=True)

    # ---- backends

    def image(self, name: str) -> Optional[Image]:
        """The image of a backend; made if it is not there."""
        kind = 'qcow2' if name == 'qcow2' else 'raw'
        if name == 'null-co':
            return None
        if kind not in self._images:
            self._images[kind] = self._make_image(kind)
        return self._images[kind]

    def _make_image(self, kind: str) -> Image:
        if self.options.disk is not None:
            return images.own_disk(self.options.disk, self.options.writes())
        if kind == 'qcow2':
            return images.qcow2_file(DISKS, self.options.size_mib,
                                     subjects.QEMU_IMG)
        return images.raw_file(DISKS, self.options.size_mib)

    def backend(self, name: str) -> Backend:
        """
        :raise HostError: when the host does not offer it.
        :raise ImageError: when its image cannot be used.
        """
        backend = subjects.make_backend(name, self.image(name), self.options)
        if backend.image is None:
            return backend
        off = host.io_uring_off() if backend.aio == 'io_uring' else None
        if off:
            raise host.HostError(f'backend {name}: {off}; use another')
        if backend.direct and not images.takes_direct(backend.image.path):
            raise host.HostError(
                f'backend {name}: {backend.image.path} lies on a file system '
                'without O_DIRECT; use another backend, or put build/ '
                'elsewhere')
        self._check_size(backend)
        return backend

    def _check_size(self, backend: Backend) -> None:
        """The driver wants twice as many blocks as it has requests."""
        options = self.options
        size = backend.image.size
        if options.verify:
            size = subjects.slice_of(
                size, 0, len(options.names()) * options.disks)[1]
        if size // max(options.bs) < 2 * max(options.depth) * options.queues:
            raise host.HostError(
                f'backend {backend.name}: {size >> 20} MiB are too little for '
                'this depth and block size; use a larger disk or --size')

    def warm(self, backend: Backend) -> None:
        """What is to come from the page cache must be there."""
        if backend.image is not None and not backend.direct \
                and not backend.image.own:
            images.warm(backend.image.path)

    # ---- sessions

    def socket_path(self, name: str) -> str:
        """Of a subject's monitor."""
        return os.path.join(self._sockets, f'{name}.qmp')

    @staticmethod
    def log_path(backend: str, subject: str) -> str:
        """Of what driver and QEMU say."""
        return os.path.join(LOGS, f'{backend}-{subject}.log')

    def session(self, subject: Subject, backend: Backend,
                part: Optional[Tuple[int, int]] = None,
                accel: Optional[str] = None) -> Session:
        """
        A session that is not open yet; part is (number, count), and accel what
        all that are compared have.
        """
        log = self.log_path(backend.name, subject.name)
        if subject.kind == 'fio':
            return FioSession(backend.image.path, backend.direct,
                              self.options.queues, self.pin[1:], log)
        qmp, qemu = None, []
        accel = accel or subjects.accelerator([subject], backend)
        if subject.kind == 'qemu':
            qmp = self.socket_path(subject.name)
            area = None
            if part is not None:
                area = subjects.slice_of(backend.image.size, *part)
            qemu = subjects.qemu_command(subject, backend, self.options, qmp,
                                         area, accel)
        command = subjects.driver_command(subject, self.options, self.pin,
                                          qemu)
        return DriverSession(command, log, qmp, subject.serving,
                             subject.direct, self.options.disks)

    def driver_session(self) -> DriverSession:
        """The driver alone, not open yet, with a stand-in for a device."""
        command = subjects.driver_options(self.options, self.pin)
        return DriverSession(command + ['--stand-in'],
                             self.log_path('stand-in', 'driver'))

    @contextlib.contextmanager
    def sessions(self, backend: Backend, those: List[Subject]
                 ) -> Iterator[Dict[str, Session]]:
        """All of them open; who verifies has a part of the disk alone."""
        accel = subjects.accelerator(those, backend)
        with contextlib.ExitStack() as stack:
            result: Dict[str, Session] = {}
            for number, subject in enumerate(those):
                part = (number, len(those)) if self.options.verify else None
                try:
                    result[subject.name] = stack.enter_context(
                        self.session(subject, backend, part, accel))
                except SessionError as error:
                    error.subject = subject.name
                    raise
            try:
                yield result
            finally:
                # All at once; the stack waits for them one by one.
                for session in result.values():
                    session.begin_close()

    def run(self, session: Session, load: Workload, seed: int) -> dict:
        """
        One run.

        :raise SessionError: when it failed.
        """
        options = self.options
        seconds = (options.warmup_ms + options.time_ms) / 1000
        if isinstance(session, FioSession):
            return session.run_fio(load, options.time_ms,
                                   seconds + RUN_TIMEOUT, seed)
        region = None
        timeout = seconds + RUN_TIMEOUT
        if options.verify:
            region = min(session.ready['capacity'] >> 11, VERIFY_MIB)
            timeout += PREPARE_TIMEOUT
        words = subjects.run_words(load, options, seed, region)
        return session.run(words, timeout,
                           verify=options.verify and load.rw != 'write')
