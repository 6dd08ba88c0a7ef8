# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A disk goes to another host and comes back, while its driver keeps every queue
full.

The other host is a network namespace (tests/hosts), where a storage daemon
exports an image by NBD. The daemon is a process of its own, as it is started
and ended here. What scenarios.py says of scenarios is true here, too.
"""

import json
import os
import subprocess
from typing import List, Tuple

from machine import DISK_MIB, GUARD, Hang, Machine, SoakError, wait_until
from scenarios import (Scenario, device_reset, dismiss_job, finish_job,
                       job_state, pivot, start_job, stop_cont,
                       throttle_changes, trouble_job, wait_ready)
from session import kill_group, last_lines

PORT = 10809
#: Seconds for which a node waits for its server to come back, beyond what any
#: outage here takes. The driver's own patience ends later.
RECONNECT = 45


class Daemon:
    """
    The storage daemon on the other host, with an empty image of the machine's
    form. One that is not ended here ends with the machine: until then a QEMU
    that hangs can be looked at as it is.

    path: of the image; the caller removes it
    """

    def __init__(self, vm: Machine):
        assert vm.network is not None
        self._vm = vm
        self._host = vm.network.there
        self._name = vm.name('remote')
        self._pidfile = vm.path(self._name + '.pid')
        self._log = f'{vm.log}.{self._name}'
        self.path = vm.path(self._name + '.img')
        vm.img('create', '-q', '-f', vm.config.form, self.path, f'{DISK_MIB}M')
        with open(self._log, 'wb') as output:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True, cwd=vm.work)
        vm.at_end.append(self._kill)
        wait_until('the storage daemon', lambda:
                   self._check() or os.path.exists(self._pidfile))

    def _command(self) -> List[str]:
        node = {'driver': self._vm.config.form, 'node-name': 'disk',
                'discard': 'unmap',
                'file': {'driver': 'file', 'discard': 'unmap',
                         'filename': self.path}}
        # It ends with the test, however that does.
        return [*self._host.prefix, 'setpriv', '--pdeathsig', 'KILL',
                self._vm.tools.daemon, '--blockdev', json.dumps(node),
                '--nbd-server', 'addr.type=inet,'
                f'addr.host={self._host.address},addr.port={PORT}',
                '--export', 'type=nbd,id=export,node-name=disk,name=disk,'
                'writable=on', '--pidfile', self._pidfile]

    def _check(self) -> None:
        """:raise SoakError: if it has ended."""
        status = self._process.poll()
        if status is not None:
            raise SoakError(f'the storage daemon ended with status {status}: '
                            + ' / '.join(last_lines(self._log, 3)))

    def _kill(self) -> None:
        kill_group(self._process)

    def end(self) -> None:
        """It closes its image, which must go well."""
        self._check()
        self._process.terminate()
        try:
            status = self._process.wait(GUARD)
        except subprocess.TimeoutExpired:
            raise Hang('the storage daemon does not end') from None
        if status != 0:
            self._check()
        self._vm.at_end.remove(self._kill)
        os.unlink(self._log)

    def end_and_forget(self) -> None:
        """Its image is of no use."""
        self.end()
        os.unlink(self.path)

    def compare(self, copy: str) -> None:
        """Ends it: what the disk held must be in its image, bit for bit."""
        self.end()
        self._vm.compare(copy, self.path, self._vm.config.form)

    def add_node(self, reconnect: int = 0) -> str:
        """Adds a node that stands on the export; returns its name."""
        name = self._vm.name('nbd')
        node = {'driver': 'raw', 'node-name': name, 'discard': 'unmap',
                'file': {'driver': 'nbd', 'node-name': name + '-nbd',
                         'discard': 'unmap', 'export': 'disk',
                         'reconnect-delay': reconnect,
                         'server': {'type': 'inet', 'keep-alive': True,
                                    'host': self._host.address,
                                    'port': str(PORT)}}}
        self._vm.cmd('blockdev-add', node)
        # Which image it is stands where other nodes have it.
        self._vm.nodes[name] = {**node, 'file': {'filename': self.path}}
        return name


# ---- the cable

def connected(vm: Machine) -> bool:
    """Whether QEMU has a connection, as far as it knows."""
    assert vm.network is not None
    return vm.network.here.connections(PORT) > 0


def cut(vm: Machine) -> None:
    """The cable is pulled out."""
    assert vm.network is not None
    vm.network.cut()


def mend(vm: Machine) -> None:
    """The pair of cut()."""
    assert vm.network is not None
    vm.network.mend()


def outage(vm: Machine) -> None:
    """One that QEMU notices; then it finds the other host again."""
    cut(vm)
    wait_until('the connection to break', lambda: not connected(vm))
    mend(vm)
    wait_until('the connection to come back', lambda: connected(vm))


# ---- mirrors

def start_mirror(vm: Machine, target: str, **more) -> Tuple[str, bool]:
    """Returns the job, and whether the guest's writes wait for the target."""
    waiting = vm.chance.random() < 0.5
    job = start_job(vm, 'blockdev-mirror', vm.top, target=target, sync='full',
                    copy_mode='write-blocking' if waiting else 'background',
                    **more)
    return job, waiting


def in_the_middle(vm: Machine, job: str) -> None:
    """Waits until a job, begun slowly, has copied something and not all."""
    wait_until('the job to copy', lambda:
               job_state(vm, job)['current-progress'] > 0)
    if job_state(vm, job)['status'] != 'running':
        raise SoakError(f'not in the middle: {job_state(vm, job)}')


def hurry(vm: Machine, job: str) -> None:
    """A job that was begun slowly and has not ended."""
    vm.cmd('block-job-set-speed', device=job, speed=0)


def come_back(vm: Machine, daemon: Daemon, target: str, job: str) -> None:
    """The mirror ends here, and the image there is as the disk was then."""
    wait_ready(vm, job)
    vm.progress()
    # From here until it is resumed the driver writes nothing.
    copy = vm.copy('copy')
    vm.cmd('job-complete', id=job)
    finish_job(vm, job)
    vm.del_node(vm.top, keep=True)
    vm.top = target
    vm.driver.cmd('verify')
    vm.resume()
    daemon.compare(copy)


def remote(vm: Machine) -> None:
    """covers: M1, M10: mirrored to another host, at work there, and back"""
    daemon = Daemon(vm)
    target = daemon.add_node()
    job, _ = start_mirror(vm, target)
    vm.progress(50)
    trouble_job(vm, job)
    pivot(vm, target, job)
    events = [stop_cont, device_reset, throttle_changes]
    vm.chance.shuffle(events)
    for event in events[:2]:
        event(vm)
    target = vm.add_node('mirror', vm.config.form)
    job, _ = start_mirror(vm, target)
    vm.progress(50)
    trouble_job(vm, job)
    come_back(vm, daemon, target, job)


def remote_copy(vm: Machine) -> None:
    """covers: M1, M10: a mirror to another host ends: both are the same"""
    daemon = Daemon(vm)
    target = daemon.add_node()
    job, _ = start_mirror(vm, target)
    trouble_job(vm, job)
    wait_ready(vm, job)
    vm.progress()
    copy = vm.copy('copy')
    vm.cmd('block-job-cancel', device=job)
    finish_job(vm, job)
    vm.resume(50)
    vm.del_node(target, keep=True)
    daemon.compare(copy)


def lose(vm: Machine, how: str) -> None:
    """The cable is out for too long; the mirror ends as told, see below."""
    daemon = Daemon(vm)
    target = daemon.add_node()
    job, waiting = start_mirror(vm, target, on_target_error=(
        'stop' if how == 'stop' else 'report'))
    in_the_middle(vm, job)
    vm.qmp.forget_events()
    cut(vm)
    if not waiting:
        vm.progress(50)
    hurry(vm, job)
    if how == 'cancel':
        vm.cmd('job-cancel', id=job)
    elif how == 'stop':
        vm.qmp.event('BLOCK_JOB_ERROR', device=job, action='stop')
        wait_until('the job to stand still', lambda:
                   job_state(vm, job)['status'] == 'paused')
        vm.progress(50)
        vm.cmd('job-cancel', id=job)
    wait_until(f'job {job} to end', lambda:
               job_state(vm, job)['status'] == 'concluded')
    if how == 'report' and not job_state(vm, job).get('error'):
        raise SoakError('the mirror ended well without a cable')
    dismiss_job(vm, job)
    vm.progress(50)
    vm.del_node(target, keep=True)
    mend(vm)
    daemon.end_and_forget()
    vm.progress(50)


def remote_lost(vm: Machine) -> None:
    """covers: M10: a mirror loses the other host; the guest goes on"""
    ways = ['report', 'stop', 'cancel']
    vm.chance.shuffle(ways)
    for how in ways:
        lose(vm, how)
    remote_copy(vm)


def remote_outage(vm: Machine) -> None:
    """covers: M1, M10: mirrors and guest wait for the other host, and go on"""
    daemon = Daemon(vm)
    target = daemon.add_node(RECONNECT)
    job, _ = start_mirror(vm, target)
    in_the_middle(vm, job)
    outage(vm)
    hurry(vm, job)
    pivot(vm, target, job)
    # Nothing that the guest asks for fails meanwhile.
    outage(vm)
    vm.progress()
    target = vm.add_node('mirror', vm.config.form)
    job, _ = start_mirror(vm, target)
    in_the_middle(vm, job)
    outage(vm)
    hurry(vm, job)
    come_back(vm, daemon, target, job)


SCENARIOS = (
    Scenario('remote', remote, throttled=False, remote=True),
    Scenario('remote-copy', remote_copy, throttled=False, remote=True),
    Scenario('remote-lost', remote_lost, throttled=False, remote=True),
    Scenario('remote-outage', remote_outage, throttled=False, remote=True),
)
