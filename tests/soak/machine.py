# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
One QEMU with a disk, and the driver that keeps the disk's queues full.

Knows how both are started, spoken to, looked at when they hang, and ended; and
which node the disk stands on at present. What is done to the disk stands in
scenarios.py. Only processes that were started here are ended.
"""

import glob
import json
import os
import random
import resource
import shlex
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import waiting
from hosts import Network
from session import LineReader, kill_group, last_lines

MIB = 1 << 20
#: The driver works on all of the disk, unless that has just grown.
DISK_MIB = 16
SLOT = 4
DEVICE = 'd0'
#: I/O port with which a PC's firmware lets PCI devices go
EJECT = 0xae08
BACKEND = f'/machine/peripheral/{DEVICE}/virtio-backend'

#: hang guards, far beyond what any step takes
GUARD = 120
STALL = 60
CLOSE_GUARD = 20
GDB_GUARD = 60


class SoakError(Exception):
    """Something did not behave as it must; the text says what."""


class Hang(SoakError):
    """Something did not end in time."""


class Refused(SoakError):
    """QEMU refuses a command, with this class of error."""

    def __init__(self, text: str, kind: str = ''):
        super().__init__(text)
        self.kind = kind


#: of slow machines; the largest that there is
QUEUE_SIZE = 1024


@dataclass(frozen=True)
class Config:
    """
    A machine with its disk.

    throttled: the disk stands on a throttle filter all the time
    packed: offers packed and in-order rings; the driver chooses at each start
    slow: all images are on throttle filters of one group, so that metadata can
        be made slow, unless they are direct; for pairs.py
    data_file: but what the guest reads and writes is not
    depth: requests in flight of each queue
    direct: reads and writes go past the block layer's coroutines where they
    can, which they cannot below a throttle filter
    """
    name: str
    queues: int
    iothreads: int
    form: str
    throttled: bool = False
    packed: bool = False
    slow: bool = False
    data_file: bool = False
    depth: int = 16
    direct: bool = False


CONFIGS = (
    Config('four-queues', 4, 2, 'qcow2'),
    Config('one-queue', 1, 1, 'raw', packed=True),
    Config('direct', 4, 2, 'raw', direct=True),
    Config('throttle-filter', 2, 2, 'qcow2', True),
    Config('pairs', 2, 2, 'qcow2', slow=True, data_file=True, depth=128),
    Config('pairs-packed', 1, 1, 'qcow2', packed=True, slow=True),
    # As many as the queues have entries.
    Config('pairs-full', 2, 2, 'qcow2', slow=True, data_file=True,
           depth=QUEUE_SIZE),
    Config('pairs-direct', 2, 2, 'raw', slow=True, depth=128, direct=True),
)


@dataclass
class Tools:
    """Programs, and where things are put."""
    qemu: str
    qemu_img: str
    driver: str
    logs: str
    daemon: str
    #: QEMU's own path instead of the plane's
    stock: bool = False

    def has_tcg(self) -> bool:
        """Whether there is a vCPU that can be halted; else there is none."""
        return 'tcg' in subprocess.run(
            [self.qemu, '-accel', 'help'], capture_output=True, text=True,
            check=True).stdout.split()


wait_until = partial(waiting.wait_until, guard=GUARD, failure=Hang)


class Monitor:
    """One of QEMU's monitors. Belongs to one thread."""

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = LineReader(self._socket)  # type: ignore[arg-type]
        self._number = 0
        self._events: List[dict] = []
        self._answers: Dict[int, dict] = {}
        self._message(GUARD)
        self.cmd('qmp_capabilities')

    def close(self) -> None:
        """Leaves QEMU running."""
        self._reader.close()
        self._socket.close()

    def _message(self, guard: float) -> dict:
        try:
            line = self._reader.line(guard)
        except TimeoutError:
            raise Hang(f'the monitor said nothing for {guard:.0f} s') from None
        except OSError as error:
            raise SoakError(f'QEMU closed its monitor: {error}') from None
        if line is None:
            raise SoakError('QEMU closed its monitor')
        message = json.loads(line)
        if 'event' in message:
            self._events.append(message)
        elif 'id' in message:
            self._answers[message['id']] = message
        return message

    def send(self, name: str, exact: Optional[dict] = None, /,
             **arguments) -> int:
        """Begins a command; arguments with "-" have "_" here, or are exact."""
        self._number += 1
        arguments = {key.replace('_', '-'): value
                     for key, value in arguments.items()}
        request = {'execute': name, 'id': self._number,
                   'arguments': {**arguments, **(exact or {})}}
        try:
            self._socket.sendall(json.dumps(request).encode() + b'\n')
        except OSError as error:
            raise SoakError(f'QEMU closed its monitor: {error}') from None
        return self._number

    def answer(self, number: int, what: str = 'a command') -> Any:
        """
        The end of a command; what else ends meanwhile is kept.

        :raise Refused: when QEMU does.
        """
        end = time.monotonic() + GUARD
        while number not in self._answers:
            left = end - time.monotonic()
            if left <= 0:
                raise Hang(f'{what} has not ended for {GUARD} s')
            try:
                self._message(left)
            except Hang:
                raise Hang(f'{what} has not ended for {GUARD} s') from None
        message = self._answers.pop(number)
        if 'error' in message:
            raise Refused(f"{what}: {message['error']['desc']}",
                          message['error']['class'])
        return message['return']

    def cmd(self, name: str, exact: Optional[dict] = None, /,
            **arguments) -> Any:
        """Runs a command."""
        return self.answer(self.send(name, exact, **arguments), name)

    def hmp(self, line: str) -> str:
        """Runs a command of the human monitor."""
        number = self.send('human-monitor-command', command_line=line)
        return str(self.answer(number, line))

    def events(self) -> List[dict]:
        """Those that have come so far."""
        return list(self._events)

    def forget_events(self) -> None:
        """Those that have come so far."""
        self._events.clear()

    def event(self, name: str, /, **data) -> dict:
        """The next event of this name whose data has these members."""
        end = time.monotonic() + GUARD
        seen = 0
        while True:
            for event in self._events[seen:]:
                seen += 1
                if event['event'] == name and all(
                        event['data'].get(key) == value
                        for key, value in data.items()):
                    return event
            left = end - time.monotonic()
            if left <= 0:
                raise Hang(f'event {name} has not come for {GUARD} s')
            self._message(left)


class HumanMonitor:
    """
    A monitor that does not wait for the end of another monitor's command, as
    those for machines do.
    """

    PROMPT = b'(qemu) '

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._until_prompt('the start')

    def close(self) -> None:
        """Leaves QEMU running."""
        self._socket.close()

    def _until_prompt(self, what: str) -> str:
        end = time.monotonic() + GUARD
        text = b''
        while not text.endswith(self.PROMPT):
            self._socket.settimeout(max(end - time.monotonic(), 0.001))
            try:
                more = self._socket.recv(65536)
            except TimeoutError:
                raise Hang(f'{what} has not ended for {GUARD} s') from None
            except OSError as error:
                raise SoakError(f'QEMU closed its monitor: {error}') from None
            if not more:
                raise SoakError('QEMU closed its monitor')
            text += more
        return text[:-len(self.PROMPT)].decode(errors='replace')

    def cmd(self, line: str) -> str:
        """Runs a command; returns what it prints, behind its own echo."""
        try:
            self._socket.sendall(line.encode() + b'\n')
        except OSError as error:
            raise SoakError(f'QEMU closed its monitor: {error}') from None
        return self._until_prompt(line)


def set_queue_iothread(monitor: Monitor, queue: int, iothread: str,
                       path: str = BACKEND) -> None:
    """Begins to move a queue of a disk."""
    monitor.cmd('x-virtio-blk-set-queue-iothread', path=path, queue=queue,
                iothread=iothread)


def limit_images(human: HumanMonitor, iops: int) -> None:
    """Limits requests to the images of a slow machine; 0: not any more."""
    words = human.cmd('qom-set -j /objects/slow limits '
                      + json.dumps({'iops-total': iops, 'iops-total-max': 0}))
    if 'Error' in words:
        raise SoakError(f'the limits cannot be set: {words}')


def allow_core() -> None:
    """A QEMU that crashes shall leave something to be looked at."""
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


class Driver:
    """The process that works the rings; QEMU is its child."""

    def __init__(self, command: List[str], log: str, cwd: str):
        with open(log, 'wb') as output:
            output.write((shlex.join(command) + '\n\n').encode())
            output.flush()
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=output, start_new_session=True, cwd=cwd,
                preexec_fn=allow_core)
        self._log = log
        self._over = False
        assert self._process.stdout is not None
        self._reader = LineReader(self._process.stdout)
        try:
            self.pid = int(self._answer('the start of QEMU'))
        except BaseException:
            self.close()
            raise

    def _answer(self, what: str) -> str:
        try:
            line = self._reader.line(GUARD)
        except TimeoutError:
            raise Hang(f'the driver has not done "{what}" for {GUARD} s'
                       ) from None
        if line is None:
            raise SoakError(f'the driver ended at "{what}": '
                            + ' / '.join(last_lines(self._log, 3)))
        kind, _, text = line.partition(' ')
        if kind != 'ok':
            self._over = True
            raise SoakError(f'at "{what}", the driver says: {text}')
        return text

    def cmd(self, *words: Any) -> str:
        """One of the commands that its "help" shows."""
        line = ' '.join(map(str, words))
        if self._over:
            raise SoakError(f'the driver does not do "{line}" any more')
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b'\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            # It has said why, or its end tells.
            pass
        return self._answer(line)

    def stats(self) -> Dict[str, int]:
        """Its counters."""
        return json.loads(self.cmd('stats'))

    def close(self) -> Optional[str]:
        """Ends it and QEMU; returns what was wrong with that, if anything."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            status = self._process.wait(CLOSE_GUARD)
        except subprocess.TimeoutExpired:
            kill_group(self._process)
            status = -1
        self._reader.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return f'the driver ended with status {status}' if status else None


class Machine:
    """
    Use as 'with Machine(...) as vm'.

    top: name of the node that the disk stands on
    chance: where all that is left to chance comes from
    stall: seconds after which a request counts as lost
    network: QEMU runs on the host that is "here", if there is one
    at_end: is called when the driver and QEMU have ended
    stage: what pairs.py keeps of it
    """

    def __init__(self, tools: Tools, config: Config, work: str, seed: int,
                 stall: int = STALL, network: Optional[Network] = None):
        self.tools = tools
        self.config = config
        self.work = work
        self.chance = random.Random(seed)
        self.seed = seed
        self.stall = stall
        self.network = network
        self.at_end: List[Callable[[], None]] = []
        self.stage: Any = None
        self._bad_end = False
        #: how often the disk has been plugged or unplugged
        self.plugs = 0
        #: whether requests have been submitted directly
        self.was_direct = False
        self.log = os.path.join(tools.logs, f'{config.name}-{seed}.log')
        self.top = 'n0'
        #: With the qtest accelerator throttle groups look at the guest's
        #: time, which goes on only when told to.
        self.guest_time = not tools.has_tcg()
        self.nodes: Dict[str, dict] = {}
        self._number = 0
        self.monitors: List[Union[Monitor, HumanMonitor]] = []
        #: that serve the disk when it is plugged next
        self.iothreads = list(range(config.iothreads))

    def __enter__(self) -> 'Machine':
        os.makedirs(self.work, exist_ok=True)
        try:
            self.driver = Driver(self._command(), self.log, self.work)
        except BaseException:
            shutil.rmtree(self.work, ignore_errors=True)
            raise
        try:
            self.qmp = self.monitor('qmp')
            self.driver.cmd('start')
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind, *_exc) -> None:
        problem = self._end()
        if problem and kind is None and not self._bad_end:
            raise SoakError(problem + ': '
                            + ' / '.join(last_lines(self.log, 3)))

    def expect_bad_end(self) -> None:
        """The driver has complained and is going to say so."""
        self._bad_end = True

    def _end(self) -> Optional[str]:
        for monitor in self.monitors:
            monitor.close()
        if self.network:
            self.network.mend()
        problem = self.driver.close()
        for action in self.at_end:
            action()
        shutil.rmtree(self.work, ignore_errors=True)
        return problem

    def monitor(self, name: str) -> Monitor:
        """Of the two that QEMU has, "qmp" and "other"."""
        monitor = Monitor(self._socket(name))
        self.monitors.append(monitor)
        return monitor

    def human_monitor(self) -> HumanMonitor:
        """Of a slow machine."""
        monitor = HumanMonitor(self._socket('human'))
        self.monitors.append(monitor)
        return monitor

    # ---- command line

    def _socket(self, name: str) -> str:
        return os.path.join(self.work, name)

    def root(self) -> str:
        """The node that the device uses; top, or the filter on it."""
        return 'filter' if self.config.throttled else self.top

    def device(self) -> dict:
        """The disk, for -device and device_add."""
        device: Dict[str, Any] = {
            'driver': 'virtio-blk-pci', 'id': DEVICE, 'drive': self.root(),
            'addr': f'{SLOT:x}', 'num-queues': self.config.queues}
        if len(self.iothreads) == 1:
            device['iothread'] = f'io{self.iothreads[0]}'
        else:
            device['iothread-vq-mapping'] = [
                {'iothread': f'io{i}'} for i in self.iothreads]
        if self.config.slow:
            device['queue-size'] = QUEUE_SIZE
        if self.config.packed:
            device.update({'packed': True, 'in_order': True})
        if self.tools.stock:
            device['x-data-plane'] = 'off'
        if self.config.direct:
            device['x-direct'] = True
        return device

    def _command(self) -> List[str]:
        config = self.config
        prefix = self.network.here.prefix if self.network else []
        return [*prefix, self.tools.driver, '--queues', str(config.queues),
                '--depth', str(config.depth), '--disk', str(DISK_MIB),
                '--memory', '128' if config.slow else '64',
                '--stall', str(self.stall), '--seed', str(self.seed),
                '--', *self._qemu(self.new_node('n0', config.form))]

    def _qemu(self, node: dict) -> List[str]:
        """The QEMU whose disk stands on this node."""
        config = self.config
        command = [self.tools.qemu, '-m', 'slots=4,maxmem=2G']
        if not self.guest_time:
            command += ['-accel', 'tcg']
        for name in self.all_iothreads():
            command += ['-object', f'iothread,id={name}']
        if config.slow:
            command += ['-object', 'throttle-group,id=slow', '-monitor',
                        f'unix:{self._socket("human")},server=on,wait=off']
        command += ['-blockdev', json.dumps(node)]
        if config.throttled:
            command += ['-object', json.dumps(
                {'qom-type': 'throttle-group', 'id': 'group', 'limits': {}})]
            command += ['-blockdev', json.dumps(
                {'driver': 'throttle', 'node-name': 'filter',
                 'throttle-group': 'group', 'file': 'n0'})]
        command += ['-device', json.dumps(self.device())]
        for name in ('qmp', 'other'):
            command += ['-qmp', f'unix:{self._socket(name)},server=on,wait=off']
        return command

    # ---- images and nodes

    def name(self, kind: str) -> str:
        """A name that nothing has had so far."""
        self._number += 1
        return f'{kind}{self._number}'

    def path(self, name: str) -> str:
        """Of a file that goes away with the machine."""
        return os.path.join(self.work, name)

    def img(self, *words: str) -> str:
        """Runs qemu-img."""
        result = subprocess.run([self.tools.qemu_img, *words], text=True,
                                capture_output=True, check=False,
                                timeout=GUARD)
        if result.returncode != 0:
            raise SoakError(f'qemu-img {shlex.join(words)}: '
                            f'{(result.stdout + result.stderr).strip()}')
        return result.stdout

    def new_node(self, name: str, form: str, **more) -> dict:
        """Makes an image, and returns the options of its node."""
        path = self.path(name + '.img')
        options = []
        if self.config.data_file:
            options = ['-o', f'data_file={path}.data']
            more['data-file'] = {
                'driver': 'file', 'node-name': name + '-data',
                'discard': 'unmap', 'filename': path + '.data'}
        self.img('create', '-q', '-f', form, *options, path, f'{DISK_MIB}M')
        self.nodes[name] = {
            'driver': form, 'node-name': name, 'discard': 'unmap', **more,
            'file': {'driver': 'file', 'node-name': name + '-file',
                     'discard': 'unmap', 'filename': path}}
        if self.config.direct:
            self.nodes[name]['file']['aio'] = 'io_uring'
        if not self.config.slow or self.config.direct:
            return self.nodes[name]
        return {**self.nodes[name], 'file': {
            'driver': 'throttle', 'node-name': name + '-file',
            'throttle-group': 'slow', 'discard': 'unmap', 'file': {
                **self.nodes[name]['file'], 'node-name': name + '-slow'}}}

    def del_image(self, path: str) -> None:
        """Removes an image that no node has open."""
        os.unlink(path)
        if self.config.data_file:
            os.unlink(path + '.data')

    def add_node(self, kind: str, form: str, **more) -> str:
        """Adds a node with an empty image; returns its name."""
        name = self.name(kind)
        self.cmd('blockdev-add', **self.new_node(name, form, **more))
        return name

    def del_node(self, name: str, keep: bool = False,
                 unplugged: bool = False) -> str:
        """
        Removes a node, and its image; returns the image's path.

        unplugged: a device that has just gone may still have it
        """
        path = self.nodes[name]['file']['filename']
        delete = self.cmd_when_free if unplugged else self.cmd
        delete('blockdev-del', node_name=name)
        del self.nodes[name]
        if not keep:
            self.del_image(path)
        return path

    def free_nodes(self) -> None:
        """Closes all images; the disk is unplugged."""
        if self.config.throttled:
            self.cmd_when_free('blockdev-del', node_name='filter')
        self.cmd_when_free('blockdev-del', node_name=self.top)

    # ---- both processes

    def cmd(self, name: str, exact: Optional[dict] = None, /,
            **arguments) -> Any:
        """Runs a QMP command, see Monitor."""
        return self.qmp.cmd(name, exact, **arguments)

    def cmd_when_free(self, name: str, **arguments) -> None:
        """A command that QEMU refuses as long as its object is in use."""
        def done() -> bool:
            try:
                self.cmd(name, **arguments)
            except Refused as error:
                if 'in use' in str(error):
                    return False
                raise
            return True
        wait_until(f'{arguments} to be free', done)

    def clock(self, on: bool) -> None:
        """Whether throttles go on."""
        if self.guest_time:
            self.driver.cmd('clock', 'on' if on else 'off')

    def progress(self, requests: int = 200) -> None:
        """The load goes on: waits until so many more have been completed."""
        before = self.driver.stats()['requests']
        wait_until(f'{requests} more requests', lambda:
                   self.driver.stats()['requests'] >= before + requests)

    def resume(self, requests: int = 200) -> None:
        """Lets the driver go on, and sees that it does."""
        self.driver.cmd('resume')
        self.progress(requests)

    def crash(self) -> None:
        """
        QEMU is killed at work, and at once another has its image; what was
        completed must be there.
        """
        if self.config.slow and not self.config.direct or self.config.throttled:
            raise ValueError(f'{self.config.name} has nodes beside {self.top}')
        while self.monitors:
            self.monitors.pop().close()
        path = self.path('command')
        with open(path, 'w', encoding='utf-8') as output:
            output.write('\n'.join(self._qemu(self.nodes[self.top])))
        self.driver.pid = int(self.driver.cmd('crash', path))
        self.qmp = self.monitor('qmp')
        self.driver.cmd('start')

    def copy(self, name: str) -> str:
        """Quiesces the driver and keeps what the disk holds, verified."""
        path = self.path(name)
        self.driver.cmd('copy', path)
        return path

    def compare(self, copy: str, image: str, form: str,
                options: Sequence[str] = ()) -> None:
        """Bit for bit; both files are removed."""
        self.img('compare', *options, '-f', 'raw', '-F', form, copy, image)
        os.unlink(copy)
        self.del_image(image)

    def all_iothreads(self) -> List[str]:
        """Those that are there all the time; of a slow one, one is to spare."""
        return [f'io{i}' for i in range(self.config.iothreads
                                        + self.config.slow)]

    def plane(self) -> dict:
        """What the plane says of itself."""
        return self.cmd('qom-get', path=BACKEND, property='x-data-plane-info')

    def check_plane(self) -> None:
        """The disk is served by whom it should be served, without errors."""
        info = self.plane()
        if bool(info['serving']) == self.tools.stock:
            raise SoakError(f'the plane should {"not " * self.tools.stock}'
                            f'serve: {info}')
        errors = sum(queue['errors'] for queue in info.get('queues', []))
        if errors:
            raise SoakError(f'the plane counted {errors} failed requests')
        if any(queue['direct'] for queue in info.get('queues', [])):
            self.was_direct = True

    def post_mortem(self) -> str:
        """What else is to be told about a failure."""
        try:
            self.driver.cmd('where')
        except SoakError as error:
            return f'{error}; {self._backtrace()}'
        return self._backtrace()

    def _backtrace(self) -> str:
        """Where QEMU's threads stand, into a file; returns words about it."""
        gdb = shutil.which('gdb')
        path = self.log + '.threads'
        subject = ['-p', str(self.driver.pid)]
        if not os.path.exists(f'/proc/{self.driver.pid}/exe'):
            cores = glob.glob(self.path('core*'))
            if not cores:
                return 'QEMU is gone, without a core'
            subject = [self.tools.qemu, cores[0]]
        if not gdb:
            return 'install gdb to see where QEMU stands'
        with open(path, 'wb') as output:
            try:
                subprocess.run(
                    [gdb, '-batch', '-nx', *subject, '-ex',
                     'set print frame-arguments scalars', '-ex',
                     'thread apply all bt 40'], stdout=output,
                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    timeout=GDB_GUARD, check=False)
            except subprocess.TimeoutExpired:
                return 'gdb hung, too'
        return f'where QEMU stood: {path}'
