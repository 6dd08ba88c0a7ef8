# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
One process of the benchmark's driver, with the QEMU that it starts: open, runs
one after the other, close.

Knows the driver's protocol and QMP; does not know what is measured or why. A
process is ended by closing its standard input, and by force if that does not
help; only processes that were started here are.
"""

import json
import os
import selectors
import shlex
import signal
import socket
import subprocess
import time
from typing import BinaryIO, Callable, List, Optional

#: hang guards, far beyond what any step takes
OPEN_TIMEOUT = 60
CLOSE_TIMEOUT = 10
QMP_TIMEOUT = 30

LATENCIES = ('mean', 'p50', 'p99', 'p999', 'max')


class SessionError(Exception):
    """A run failed, in words for the user."""

    def __init__(self, message: str, log: Optional[str] = None):
        super().__init__(message)
        self.log = log
        #: whose session could not be opened, if it was that
        self.subject = ''


class LineReader:
    """Lines from a pipe, with a time-out."""

    def __init__(self, pipe: BinaryIO):
        self._fd = pipe.fileno()
        self._buffer = b''
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)

    def close(self) -> None:
        """Not the pipe, which is the caller's."""
        self._selector.close()

    def line(self, timeout: float) -> Optional[str]:
        """
        :return: the next line, or None at the end.
        :raise TimeoutError: when none comes in time.
        """
        end = time.monotonic() + timeout
        while b'\n' not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                raise TimeoutError
            data = os.read(self._fd, 65536)
            if not data:
                return None
            self._buffer += data
        line, self._buffer = self._buffer.split(b'\n', 1)
        return line.decode('utf-8', errors='replace')


class Qmp:
    """QEMU's monitor on a socket. Answers between runs only."""

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(QMP_TIMEOUT)
        self._socket.connect(path)
        self._file = self._socket.makefile('r', encoding='utf-8')
        self._answer('QMP')
        self.command('qmp_capabilities')

    def close(self) -> None:
        """Leaves QEMU running."""
        self._file.close()
        self._socket.close()

    def _answer(self, *keys: str) -> dict:
        """The next message that has one of the keys; events are passed by."""
        while True:
            line = self._file.readline()
            if not line:
                raise EOFError('QEMU closed its monitor')
            message = json.loads(line)
            if any(key in message for key in keys):
                return message

    def command(self, name: str, **arguments):
        """
        :raise SessionError: when QEMU refuses the command.
        """
        request = {'execute': name, 'arguments': arguments}
        self._socket.sendall(json.dumps(request).encode() + b'\n')
        answer = self._answer('return', 'error')
        if 'error' in answer:
            raise SessionError(f"QEMU refuses {name}: "
                               + answer['error']['desc'])
        return answer['return']


def accelerator(qmp: Qmp) -> str:
    """Who runs QEMU's vCPU, which the driver lets be one of these."""
    try:
        qmp.command('x-query-jit')
    except SessionError:
        return 'qtest'
    return 'tcg'


def kill_group(process: subprocess.Popen) -> None:
    """
    Ends a process by force, and what it has started: it leads a group of its
    own, whose number is not given to others while it has not been waited for.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        break
    process.wait()


def last_lines(log: str, number: int) -> List[str]:
    """The end of a log; empty if there is nothing."""
    try:
        with open(log, encoding='utf-8', errors='replace') as source:
            lines = [line.strip() for line in source if line.strip()]
    except OSError:
        return []
    return lines[-number:]


def last_words(log: str) -> str:
    """The last line of a log, or nothing."""
    return ''.join(last_lines(log, 1))


def result_problem(result: dict, verify: bool) -> Optional[str]:
    """What is wrong with a result, by its form; None if nothing is."""
    try:
        numbers = [result['requests'], result['seconds'], result['iops'],
                   result['mb_per_second'],
                   *(result['latency_ns'][name] for name in LATENCIES),
                   *(count for _, count in result['histogram'])]
        cpu = result['cpu_ns_per_request']
        kicks = result['notifications_per_request']
        numbers += [value for value in
                    (cpu['iothread'], cpu['process'], kicks['available'],
                     kicks['used']) if value is not None]
        driver = result.get('driver_ns_per_request')
        numbers += [] if driver is None else [driver]
    except (KeyError, TypeError, ValueError) as error:
        return f'the driver left something out of its result: {error!r}'
    if not all(isinstance(value, (int, float)) and value >= 0
               for value in numbers):
        return 'the driver reports something that is no number'
    if result['requests'] == 0:
        return 'not one request was completed'
    if 'disks' in result and result['requests'] \
            != sum(disk['requests'] for disk in result['disks']):
        return 'the requests of the disks are not those of all'
    if verify and not result.get('verified'):
        return 'nothing of what was read was verified'
    return None


def plane_problem(info: Optional[dict], expected: bool,
                  requests: int) -> Optional[str]:
    """
    Whether the requests went where they should.

    :param info: the device's x-data-plane-info
    :param expected: whether the plane should serve
    :param requests: how many the driver has counted so far
    """
    serving = bool(info and info.get('serving'))
    if serving != expected:
        if serving:
            return 'the data plane serves a disk that has x-data-plane=off'
        return ('the data plane does not serve the disk: '
                + str((info or {}).get('reason', 'QEMU gives no reason')))
    if not expected:
        return None
    queues = info.get('queues', [])
    served = sum(queue['completed'] for queue in queues)
    if served < requests:
        return (f'the data plane served {served} of {requests} requests; the '
                'rest went elsewhere')
    errors = sum(queue['errors'] for queue in queues)
    if errors:
        return f'the data plane counted {errors} failed requests'
    return None


def direct_note(info: dict) -> Optional[str]:
    """
    What is to be known of a disk that has x-direct=on; None if all went so.

    :param info: the device's x-data-plane-info
    """
    queues = info.get('queues', [])
    completed = sum(queue['completed'] for queue in queues)
    direct = sum(queue.get('direct', 0) for queue in queues)
    if not completed or direct / completed > 0.995:
        return None
    why = sorted({queue['not-direct'] for queue in queues
                  if queue.get('not-direct')})
    return (f'{direct / completed:.1%} of its requests went past the '
            "block layer's coroutines" + (f' ({"; ".join(why)})' if why
                                          else ''))


class DriverSession:
    """
    Use as 'with DriverSession(...) as session'.

    :param command: the driver with all its words
    :param log: file for what it and QEMU say
    :param qmp_path: QEMU's monitor; None: there is none
    :param serving: whether the data plane must serve; None: there is none
    :param direct: whether its requests are to be direct
    :param disks: how many QEMU has, from disk0 on
    """

    def __init__(self, command: List[str], log: str,
                 qmp_path: Optional[str] = None,
                 serving: Optional[bool] = None, direct: bool = False,
                 disks: int = 1):
        self._command = command
        self._log = log
        self._qmp_path = qmp_path
        self._serving = serving
        self._direct = direct
        self._process: Optional[subprocess.Popen] = None
        self._reader: Optional[LineReader] = None
        #: that were made so far, of each disk
        self._requests = [0] * disks
        #: what the driver said of the device
        self.ready: dict = {}
        #: QEMU's accelerator; None for who has none
        self.accel: Optional[str] = None
        #: what is to be known beside the results, after check_plane()
        self.note: Optional[str] = None

    def __enter__(self) -> 'DriverSession':
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def _start(self) -> None:
        with open(self._log, 'wb') as log:
            log.write((shlex.join(self._command) + '\n\n').encode())
            log.flush()
            # In a group of its own: ctrl-C is for us to handle.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, start_new_session=True)
        self._reader = LineReader(self._process.stdout)
        self.ready = self._event('ready', OPEN_TIMEOUT)
        if self._qmp_path is not None:
            self.accel = self._ask(accelerator)
        self.check_plane()

    def _fail(self, message: str) -> SessionError:
        return SessionError(message, self._log)

    def _event(self, wanted: str, timeout: float) -> dict:
        """The driver's next line, which has to be of this kind."""
        try:
            line = self._reader.line(timeout)
        except TimeoutError:
            raise self._fail(f'the driver said nothing for {timeout:.0f} s'
                             ) from None
        if line is None:
            raise self._fail(self._why_it_ended())
        try:
            event = json.loads(line)
            kind = event['event']
        except (ValueError, KeyError, TypeError):
            raise self._fail('the driver said something strange: '
                             + line[:80]) from None
        if kind == 'error':
            raise self._fail(str(event.get('message')))
        if kind != wanted:
            raise self._fail(f'the driver said {kind}, not {wanted}')
        return event

    def _why_it_ended(self) -> str:
        try:
            status = self._process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return 'the driver closed its output'
        how = (f'with status {status}' if status >= 0
               else f'of signal {-status}')
        return f'the driver ended {how}: {last_words(self._log)}'

    def run(self, words: List[str], timeout: float,
            verify: bool = False) -> dict:
        """
        One run.

        :raise SessionError: when it failed; the session is of no use then.
        """
        try:
            self._process.stdin.write((shlex.join(words) + '\n').encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            # It has said why, or its end tells.
            pass
        result = self._event('result', timeout)
        problem = result_problem(result, verify)
        if problem:
            raise self._fail(problem)
        for number, disk in enumerate(result.get('disks', [result])):
            self._requests[number] += disk['requests']
        return result

    def check_plane(self) -> None:
        """
        :raise SessionError: when another than expected serves the disk.
        """
        if self._serving is None:
            return
        infos = self._ask(lambda qmp: [qmp.command(
            'qom-get', path=f'/machine/peripheral/disk{number}',
            property='x-data-plane-info')
            for number in range(len(self._requests))])
        for number, info in enumerate(infos):
            problem = plane_problem(info, self._serving,
                                    self._requests[number])
            if problem:
                raise self._fail(f'disk{number}: {problem}'
                                 if number else problem)
        if self._direct:
            self.note = direct_note({'queues': [
                queue for info in infos for queue in info.get('queues', [])]})

    def write_cache(self) -> bool:
        """Whether a write of the guest may end in a cache of the host's."""
        disk, = self._ask(lambda qmp: qmp.command('query-block'))
        return disk['inserted']['cache']['writeback']

    def _ask(self, question: Callable[[Qmp], object]):
        """QEMU's answer."""
        try:
            qmp = Qmp(self._qmp_path)
            try:
                return question(qmp)
            finally:
                qmp.close()
        except SessionError as error:
            raise self._fail(str(error)) from None
        except (OSError, EOFError, ValueError) as error:
            raise self._fail(f'QEMU does not answer: {error}') from None

    def begin_close(self) -> None:
        """Asks the driver to end, so that several can do so at once."""
        if self._process is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass

    def close(self) -> None:
        """Ends driver and QEMU, and waits until they have ended."""
        if self._process is None:
            return
        self.begin_close()
        try:
            self._process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            kill_group(self._process)
        finally:
            if self._reader is not None:
                self._reader.close()
            self._process.stdout.close()
            self._process = None
