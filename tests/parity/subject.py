# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
One QEMU that does what a row of the table says, and the record of all that an
operator or a guest can see of it meanwhile.

Knows how QEMU is started, spoken to and ended, and what of its state is
compared. What is done stands in the tables.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import driver
from driver import Request
from machine import (GUARD, Hang, Monitor, Refused, SoakError, allow_core,
                     wait_until)

MIB = 1 << 20
DISK_MIB = 4
SLOT = 4
DEVICE = 'd0'
EJECT = 0xae08
BACKEND = f'/machine/peripheral/{DEVICE}/virtio-backend'

#: what differs from run to run, or says how long something took
VOLATILE = re.compile(
    r'.*_time_ns$|timestamp$|thread-id$|date-|vm-clock-|actual-size$'
    r'|vm-state-size$|offset$|busy$|actively-synced$|parent$|backing$'
    r'|downtime|setup-time|total-time|^ram$|intervals?$'
    r'|(busy|poll|idle)-ns$|wakeups$')
#: the same inside of texts: names that QEMU makes, times and rates
NOISE = (('#block[0-9]+', '#block'), (r'[0-9.:]+ sec .*', 'N sec'),
         (r'[0-9]+-[0-9]+-[0-9]+ [0-9:]+', 'DATE'),
         (r'[0-9.]+ [KM]iB( +DATE)', r'SIZE\1'),
         (r'[0-9]{4}:[0-9:.]+', 'CLOCK'))


class Broken(SoakError):
    """A row does not show what it is meant to show."""


@dataclass(frozen=True)
class Way:
    """
    Who serves the disk, and how many IOThreads there are.

    plane: x-data-plane
    threads: "iothread" or "mapping"
    target: x-data-plane of a second QEMU, where a row has one
    """
    plane: str
    threads: str
    target: str

    def properties(self) -> Dict[str, Any]:
        """For -device and device_add."""
        if self.threads == 'iothread':
            device: Dict[str, Any] = {'iothread': 'io0'}
        else:
            device = {'num-queues': 2, 'iothread-vq-mapping': [
                {'iothread': 'io0'}, {'iothread': 'io1'}]}
        if self.plane != 'auto':
            device['x-data-plane'] = self.plane
        return device


@dataclass
class Tools:
    """Programs."""
    qemu: str
    qemu_img: str
    daemon: str


class Templates:
    """Images are made once and copied."""

    def __init__(self, tools: Tools):
        self._tools = tools
        self._folder = tempfile.mkdtemp(prefix='parity-images.')
        self._lock = threading.Lock()
        self._made: Dict[tuple, str] = {}

    def close(self) -> None:
        """Removes them."""
        shutil.rmtree(self._folder)

    def copy(self, words: tuple, path: str) -> None:
        """An image that "qemu-img create" makes with these words."""
        with self._lock:
            if words not in self._made:
                made = os.path.join(self._folder, str(len(self._made)))
                options, size = words[:-1], words[-1]
                subprocess.run([self._tools.qemu_img, 'create', '-q', '-u',
                                *options, made, size], check=True,
                               stdin=subprocess.DEVNULL, timeout=GUARD,
                               cwd=self._folder)
                self._made[words] = made
        shutil.copyfile(self._made[words], path)


def pattern(number: int, size: int) -> bytes:
    """Bytes that tell where they come from."""
    return b''.join(b'%07x\n' % (number << 16 | i)
                    for i in range(size // 8))


def digest(data: bytes) -> str:
    """For a record; what is short is shown."""
    if not data or len(data) > 20:
        return hashlib.sha256(data).hexdigest()[:12] if data else ''
    return data.rstrip(b'\0').decode('latin-1')


def strip(value: Any) -> Any:
    """Without what differs from run to run."""
    if isinstance(value, dict):
        result = {}
        for key, item in value.items():
            if key == 'bins':
                result[key] = sum(item)
            elif key == 'virtual-size' and value.get('format') == 'file':
                continue    # a file grows while a job works
            elif not VOLATILE.match(key):
                result[key] = strip(item)
        return result
    if isinstance(value, list):
        return [strip(item) for item in value]
    if isinstance(value, str):
        for what, instead in NOISE:
            value = re.sub(what, instead, value)
        return value
    return value


class Subject:
    """
    Use as 'with Subject(...) as subject', then boot().

    record: what was seen, as pairs of a name and a value
    """

    def __init__(self, tools: Tools, templates: Templates, way: Way,
                 work: Optional[str] = None):
        self.tools = tools
        self.way = way
        self.record: List[Tuple[str, Any]] = []
        self._templates = templates
        self._own = work is None
        self.work = work or tempfile.mkdtemp(prefix='parity.')
        self._log = os.path.join(self.work, f'stderr-{id(self):x}')
        self._process: Optional[subprocess.Popen] = None
        self._children: List[subprocess.Popen] = []
        self.qmp: Optional[Monitor] = None
        self.qtest: Optional[driver.Qtest] = None
        self.disk: Optional[driver.Disk] = None
        self._numbers: Dict[str, int] = {}
        #: as it was booted with
        self.nodes: List[dict] = []
        #: what was served by the plane, and must have been
        self.served = 0

    def __enter__(self) -> 'Subject':
        return self

    def second(self) -> 'Subject':
        """Another QEMU with the same files; what it shows is recorded here."""
        other = Subject(self.tools, self._templates, Way(
            self.way.target, self.way.threads, self.way.target), self.work)
        other.record = self.record
        other._numbers = self._numbers
        return other

    def __exit__(self, *_exc) -> None:
        try:
            self._end()
        finally:
            for child in self._children:
                child.terminate()
                child.wait()
            if self._own:
                shutil.rmtree(self.work, ignore_errors=True)

    # ---- the record

    def note(self, what: str, value: Any) -> None:
        """One more thing that must be the same."""
        self.record.append((what, strip(value)))

    def same(self, table: Iterable[str], there: Iterable[str],
             what: str) -> None:
        """A table has what there is, no more and no less."""
        missing = sorted(set(there) - set(table))
        stale = sorted(set(table) - set(there))
        if missing or stale:
            raise Broken(f'{what}: no row for {missing}; '
                         f'rows for what QEMU does not have: {stale}')

    # ---- images

    def path(self, name: str) -> str:
        """Of a file that goes away with the subject."""
        return os.path.join(self.work, name)

    def image(self, name: str, form: str = 'raw', *options: str,
              size: str = f'{DISK_MIB}M') -> str:
        """An empty image, whose name QEMU knows without a folder."""
        self._templates.copy(('-f', form, *options, size), self.path(name))
        return name

    def node(self, name: str, form: str = 'raw', *options: str,
             size: str = f'{DISK_MIB}M', **more) -> dict:
        """An empty image "NAME.img", and the options of its node."""
        self.image(name + '.img', form, *options, size=size)
        return {'driver': form, 'node-name': name, 'discard': 'unmap', **more,
                'file': {'driver': 'file', 'node-name': name + '-file',
                         'discard': 'unmap', 'filename': name + '.img'}}

    def chain(self) -> List[dict]:
        """Options of "n0", an overlay of "base"."""
        return [self.node('base', 'qcow2'),
                self.node('n0', 'qcow2', '-F', 'qcow2', '-b', 'base.img',
                          backing='base')]

    def files(self) -> List[str]:
        """All that there are by now."""
        return sorted(os.listdir(self.work))

    def images(self, *names: str) -> None:
        """The content of files is to be the same at the end."""
        self.note('images', {'!files': sorted(names)})

    # ---- QEMU

    def device(self, **more) -> dict:
        """The disk, for -device and device_add; None leaves one out."""
        device = {'driver': 'virtio-blk-pci', 'id': DEVICE, 'drive': 'n0',
                  'addr': f'{SLOT:x}', **self.way.properties(), **more}
        return {key: value for key, value in device.items()
                if value is not None}

    def boot(self, nodes: Sequence[dict] = (),
             devices: Sequence[dict] = (), options: Sequence[str] = (),
             machine: str = 'pc') -> bool:
        """Starts QEMU; False, and on the record, if it refuses."""
        self.nodes = list(nodes)
        memory = os.memfd_create('memory')
        os.ftruncate(memory, driver.MEMORY)
        command = [
            self.tools.qemu, '-nodefaults', '-display', 'none', '-accel',
            'qtest', '-machine', machine + ',memory-backend=ram', '-m',
            f'{driver.MEMORY >> 20}M,slots=1,maxmem=1G', '-object',
            'memory-backend-file,id=ram,share=on,'
            f'size={driver.MEMORY >> 20}M,mem-path=/proc/self/fd/{memory}',
            '-qmp', f'unix:qmp-{id(self):x},server=on,wait=off',
            '-qtest', f'unix:qtest-{id(self):x},server=on,wait=off',
            '-qtest-log', 'none',
            '-object', 'iothread,id=io0', '-object', 'iothread,id=io1']
        for node in nodes:
            command += ['-blockdev', json.dumps(node)]
        command += options
        for device in devices:
            command += ['-device', json.dumps(device)]
        with open(self._log, 'wb') as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.work, pass_fds=[memory], preexec_fn=allow_core)
        try:
            if not self._connect(memory):
                self.note('start', {'status': self._process.wait(),
                                    'says': self._said(memory)})
                self._process = None
                return False
        finally:
            os.close(memory)
        return True

    def _connect(self, memory: int) -> bool:
        """False if QEMU ends."""
        assert self._process is not None
        sockets = [self.path(f'{name}-{id(self):x}')
                   for name in ('qmp', 'qtest')]
        end = time.monotonic() + GUARD
        while not all(map(os.path.exists, sockets)):
            if self._process.poll() is not None:
                return False
            if time.monotonic() > end:
                raise Hang('QEMU did not start')
            time.sleep(0.002)
        try:
            self.qmp = Monitor(sockets[0])
            self.qtest = driver.Qtest(sockets[1], memory)
            # It answers, so all of the command line was taken.
            self.qtest.ask('clock_step', 1)
        except (SoakError, OSError):
            try:
                status = self._process.wait(GUARD)
            except subprocess.TimeoutExpired:
                raise Hang('QEMU did not start') from None
            if status != 1:
                raise
            self._close()
            return False
        return True

    def _said(self, memory: int = -1) -> List[str]:
        """What QEMU has printed."""
        with open(self._log, encoding='utf-8', errors='replace') as log:
            text = log.read().replace(self.tools.qemu, 'QEMU')
        text = text.replace(f'{id(self):x}', 'ID').replace(
            f'fd/{memory}', 'fd/N')
        return [line.replace(', "x-data-plane": "off"', '')
                for line in text.splitlines()
                if not line.startswith('[')]

    def _close(self) -> None:
        if self.qmp:
            self.qmp.close()
            self.qmp = None
        if self.qtest:
            self.qtest.close()
            self.qtest = None

    def quit(self) -> None:
        """Ends QEMU, and records what it said."""
        assert self.qmp is not None and self._process is not None
        self.note('events', self._events())
        self.qmp.cmd('quit')
        status = self._process.wait(GUARD)
        self._process = None
        self._close()
        self.note('end', {'status': status, 'says': self._said()})

    def _end(self) -> None:
        """By force, if it still runs: the row went wrong."""
        self._close()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()

    def fate(self) -> str:
        """What has become of QEMU, if a row went wrong."""
        if self._process is None:
            return ''
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return 'QEMU still runs'
        return f'QEMU ended with status {status}: ' + ' / '.join(
            self._said()[-3:])

    def daemon(self, *words: str) -> None:
        """Starts a storage daemon, which ends with the subject."""
        pid = self.path('daemon.pid')
        self._children.append(subprocess.Popen(
            [self.tools.daemon, *words, '--pidfile', pid], cwd=self.work,
            stdin=subprocess.DEVNULL))
        wait_until('the storage daemon', lambda: os.path.exists(pid))

    # ---- QMP

    def cmd(self, name: str, exact: Optional[dict] = None, /,
            **arguments) -> Any:
        """A command, on the record; None if it is refused."""
        assert self.qmp is not None
        label = name if name != 'human-monitor-command' else str(exact)
        try:
            answer = self.qmp.cmd(name, exact, **arguments)
        except Refused as error:
            self.note(label, {'refused': str(error), 'class': error.kind})
            return None
        self.note(label, {'taken': answer})
        return answer if answer != {} else True

    def refusals(self) -> List[str]:
        """All that was refused."""
        return [value['refused'] for _, value in self.record
                if isinstance(value, dict) and 'refused' in value]

    def must(self, name: str, exact: Optional[dict] = None, /,
             **arguments) -> Any:
        """A command that no QEMU refuses."""
        answer = self.cmd(name, exact, **arguments)
        if answer is None:
            raise Broken(f'the row needs {name}: '
                         + str(self.record[-1][1]['refused']))
        return answer

    def status(self) -> str:
        """Of the VM."""
        assert self.qmp is not None
        return self.qmp.cmd('query-status')['status']

    def hmp(self, line: str) -> str:
        """A command of the human monitor, on the record."""
        assert self.qmp is not None
        text = self.qmp.hmp(line).replace('\r', '')
        self.note(line, text)
        return text

    def _events(self) -> List[str]:
        """Of the VM's life, in any order."""
        assert self.qmp is not None
        self.qmp.cmd('query-status')
        seen: Counter = Counter()
        for event in self.qmp.events():
            data = event.get('data', {})
            keys = ['device', 'id', 'status', 'action', 'operation', 'error',
                    'node-name']
            if event['event'] == 'BLOCK_IO_ERROR':
                # QEMU leaves out those that come too fast: reads or writes.
                keys.remove('operation')
            seen[' '.join([event['event']] + [
                f'{key}={data[key]}' for key in keys if key in data])] += 1
        return [name if name.startswith('BLOCK_IO_ERROR')
                else f'{name} ({number} times)'
                for name, number in sorted(seen.items())
                if not re.match('RTC_CHANGE|JOB_STATUS_CHANGE', name)]

    def look(self) -> None:
        """All of the state that an operator can see."""
        for name, arguments in (
                ('query-status', {}), ('query-block', {}),
                ('query-named-block-nodes', {'flat': True}),
                ('query-blockstats', {}), ('query-block-jobs', {}),
                ('query-jobs', {}), ('query-iothreads', {})):
            self.note(name, self.qmp.cmd(name, arguments))
        tree = self.qmp.hmp('info qtree')
        self.note('info qtree', [
            line.strip() for line in tree.splitlines()
            if 'x-data-plane' not in line])

    # ---- the disk

    def find_bridge(self, slot: int) -> None:
        """What is behind the bridge is on bus 1."""
        assert self.qtest is not None
        driver.Pci(self.qtest, slot).bridge(1)

    def find(self, slot: int = SLOT, bus: int = 0, legacy: bool = False,
             number: int = 0) -> driver.Disk:
        """A disk on a PCI bus, with all that its registers show."""
        assert self.qtest is not None
        pci = driver.Pci(self.qtest, slot, bus)
        pci.map()
        self.note('PCI', [hex(word) for word in pci.space()])
        disk = driver.Disk(driver.LegacyPci(pci) if legacy
                           else driver.ModernPci(pci), number)
        self.note('offered', disk.offer())
        return disk

    def start(self, disk: Optional[driver.Disk] = None, **options) -> None:
        """The guest finds the disk, and its driver starts."""
        self.disk = disk or self.find()
        self.disk.start(**options)
        self.note('started', self.disk.look())

    def info(self, device: str = DEVICE) -> dict:
        """What the plane says of itself."""
        assert self.qmp is not None
        return self.qmp.cmd('qom-get', property='x-data-plane-info',
                            path=f'/machine/peripheral/{device}/'
                                 'virtio-backend')

    def check_served(self, device: str = DEVICE) -> None:
        """By whom it should be: else nothing has been compared."""
        self.check(self.info(device))

    def check(self, info: dict) -> None:
        """The same, with what the plane says of itself."""
        if bool(info['serving']) != (self.way.plane == 'auto'):
            raise Broken(f'the disk is served by the wrong one: {info}')
        self.served += 1

    def run(self, what: str, requests: List[Request],
            disk: Optional[driver.Disk] = None, queue: int = 0) -> List[tuple]:
        """Requests, with their results on the record."""
        disk = disk or self.disk
        assert disk is not None
        answers = disk.run(requests, queue)
        self.note(what, [(*answer[:-1], digest(answer[-1])) if len(answer) > 1
                         else answer for answer in answers])
        return answers

    def io(self, disk: Optional[driver.Disk] = None,
           served: Optional[str] = DEVICE) -> None:
        """
        Requests of each kind, on each queue, each time with other data.

        served: look who served this device; None: it cannot be told
        """
        disk = disk or self.disk
        assert disk is not None
        for queue in range(min(disk.queues(), 2)):
            number = self._numbers['io'] = self._numbers.get('io', 0) + 1
            for what, requests in all_kinds(number, disk):
                self.run(what, requests, disk, queue)
        if served:
            self.check_served(served)

    def read_all(self, disk: Optional[driver.Disk] = None) -> None:
        """Whole of the disk, as the guest sees it."""
        disk = disk or self.disk
        assert disk is not None
        step = 256 << 10
        for i in range(DISK_MIB * MIB // step):
            self.run(f'read {i}', [Request(driver.IN, i * step // 512,
                                           size=step)], disk)

    def unplug(self, device: str = DEVICE, slot: int = SLOT) -> None:
        """The guest lets it go."""
        assert self.qmp is not None and self.qtest is not None
        self.note('events', self._events())
        self.qmp.forget_events()
        self.must('device_del', id=device)
        self.qtest.ask('outl', EJECT, 1 << slot)
        self.qmp.event('DEVICE_DELETED', device=device)
        self.qmp.forget_events()

    def finish(self, *files: str) -> None:
        """The last look; QEMU ends, and these images are compared."""
        self.look()
        if self.disk:
            self.note('at the end', self.disk.look())
        self.quit()
        if files:
            self.images(*files)

    # ---- jobs

    def job(self, name: str) -> Optional[dict]:
        """A job, if there is one."""
        assert self.qmp is not None
        for job in self.qmp.cmd('query-jobs'):
            if job['id'] == name:
                return job
        return None

    def wait_job(self, name: str, *status: str) -> dict:
        """Until it has one of these."""
        def there() -> Optional[dict]:
            job = self.job(name)
            if job is None:
                raise Broken(f'there is no job {name}')
            return job if job['status'] in status else None
        job = wait_until(f'job {name} to be {status}', there)
        self.note(f'job {name}', {key: job[key] for key in
                                  ('status', 'type', 'error') if key in job})
        return job

    def end_job(self, name: str, how: str = 'finish') -> None:
        """How it ends: by itself, or by a command."""
        if how == 'complete':
            self.wait_job(name, 'ready', 'concluded')
            self.cmd('job-complete', id=name)
        elif how == 'cancel':
            self.cmd('job-cancel', id=name)
        elif how == 'cancel when ready':
            self.wait_job(name, 'ready', 'concluded')
            self.cmd('job-cancel', id=name)
        elif how == 'give up':
            self.wait_job(name, 'ready', 'concluded')
            self.cmd('block-job-cancel', device=name)
        self.wait_job(name, 'concluded')
        self.cmd('job-dismiss', id=name)


def all_kinds(number: int, disk: driver.Disk) -> List[tuple]:
    """What a guest may ask for, the wrong included."""
    where = 64 * (number % 64)
    size = 4096
    written = pattern(number, 4 * size)
    kinds = [
        ('write', [Request(driver.OUT, where, written[:size])]),
        ('write neighbours', [
            Request(driver.OUT, where + 8 * i,
                    written[size * i:size * (i + 1)]) for i in range(1, 4)]),
        ('read back', [Request(driver.IN, where, size=4 * size)]),
        ('read neighbours', [Request(driver.IN, where + 8 * i, size=size)
                             for i in range(4)]),
        ('write at an odd place', [Request(driver.OUT, where + 33,
                                           pattern(number, 512))]),
        ('read beyond the end', [Request(driver.IN, 1 << 40, size=512)]),
        ('read half a sector', [Request(driver.IN, 0, size=100)]),
        ('serial number', [Request(driver.GET_ID, size=20)]),
        ('unknown', [Request(0x99, size=512)]),
        ('flush', [Request(driver.FLUSH)]),
    ]
    if disk.has(driver.F_DISCARD):
        kinds.append(('discard', [Request(
            driver.DISCARD, 0, (where + 8).to_bytes(8, 'little')
            + (8).to_bytes(4, 'little') + bytes(4))]))
    if disk.has(driver.F_WRITE_ZEROES):
        kinds.append(('write zeroes', [Request(
            driver.WRITE_ZEROES, 0, (where + 16).to_bytes(8, 'little')
            + (8).to_bytes(4, 'little') + b'\1\0\0\0')]))
    kinds.append(('read again', [Request(driver.IN, where, size=4 * size)]))
    return kinds
