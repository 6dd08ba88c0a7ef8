# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Two things at once: what drains the disk or changes its graph, and what ends or
moves the device. Scenarios are made of each pair of the two lists below.

A holder is a generator that stops three times: prepared, at work, and when
what it holds the disk with is over; then it tidies up. A mover stops once,
when the device has gone or has been moved; then it brings the disk back. A
mover is let loose at several moments while the holder is at work, with slow
metadata, so that there is time for it.

Movers speak to the human monitor, as a QMP command is not begun before the one
of the holder has ended. What scenarios.py says of scenarios is true here, too.
"""

import errno
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, List

from machine import (BACKEND, DEVICE, DISK_MIB, MIB, HumanMonitor, Machine,
                     Refused, SoakError, limit_images, wait_until)
from scenarios import (LIMITS, Scenario, back_to_form, cancel_job, dismiss_job,
                       job_state, plug, snapshot, wait_job)

Step = Callable[['Stage'], Iterator[None]]


@dataclass
class Stage:
    """
    Where a pair plays.

    human: a monitor for movers
    iops: limit of requests to images while a holder is at work
    lengths: seconds that each holder is at work undisturbed
    migrated: images were inactive while a holder was at work
    """
    vm: Machine
    human: HumanMonitor
    iops: int
    lengths: Dict[str, float] = field(default_factory=dict)
    migrated: bool = False

    def send(self, name: str, /, **arguments) -> int:
        """Begins a QMP command."""
        return self.vm.qmp.send(name, **arguments)

    def answers(self, *numbers: int) -> None:
        """Commands end, and well."""
        for number in numbers:
            self.vm.qmp.answer(number, 'what holds the disk')

    def tried(self, *numbers: int) -> None:
        """
        Commands end; the device that they are for may be gone, or the image
        inactive, as the disk is being migrated.
        """
        for number in numbers:
            try:
                self.answers(number)
            except Refused:
                pass

    def slow(self, yes: bool) -> None:
        """Limits requests to images, or not any more."""
        limit_images(self.human, self.iops * yes)


@dataclass(frozen=True)
class Part:
    """
    One of either list.

    plane: QEMU's own path cannot do it
    """
    name: str
    run: Step
    plane: bool = False


# ---- what holds a drained section, or changes the graph

def resize(stage: Stage) -> Iterator[None]:
    """it grows and shrinks"""
    yield
    sizes = [DISK_MIB + stage.vm.chance.choice((1, 1000, 4000)), DISK_MIB]
    numbers = [stage.send('block_resize', node_name=stage.vm.root(),
                          size=size * MIB) for size in sizes]
    yield
    stage.tried(*numbers)
    yield


def throttle_change(stage: Stage) -> Iterator[None]:
    """the device's limits change"""
    yield
    numbers = [stage.send('block_set_io_throttle', **{
        'id': BACKEND, **dict.fromkeys(LIMITS, 0), 'iops': iops})
               for iops in (500, 0, 50, 700, 0)]
    yield
    stage.tried(*numbers)
    yield


def group_change(stage: Stage) -> Iterator[None]:
    """the limits of a group change"""
    yield
    numbers = [stage.send('qom-set', path='/objects/slow', property='limits',
                          value={'iops-total': iops, 'iops-total-max': 0})
               for iops in (300, 20, 50, 0)]
    yield
    stage.tried(*numbers)
    yield


def reopen(stage: Stage) -> Iterator[None]:
    """it is reopened with other options"""
    vm = stage.vm
    old = vm.nodes[vm.top]
    options = {**old, 'file': old['file']['node-name']}
    if 'data-file' in old:
        options['data-file'] = old['data-file']['node-name']
    yield
    numbers = [stage.send('blockdev-reopen', options=[
        {**options, 'discard': discard}]) for discard in ('ignore', 'unmap')]
    yield
    stage.tried(*numbers)
    yield


def drains(stage: Stage) -> Iterator[None]:
    """it is flushed and drained"""
    yield
    numbers = [stage.send('human-monitor-command',
                          command_line=f'qemu-io -d {BACKEND} {command}')
               for command in ('flush', 'aio_flush') * 2]
    yield
    stage.tried(*numbers)
    yield


def transaction(stage: Stage) -> Iterator[None]:
    """several drained sections, one within the other"""
    vm = stage.vm
    targets = [vm.add_node('nested', vm.config.form) for _ in range(3)]
    actions = [{'type': 'blockdev-backup', 'data': {
        'job-id': target, 'device': vm.top, 'target': target, 'sync': 'none',
        'auto-dismiss': False}} for target in targets]
    yield
    number = stage.send('transaction', actions=actions)
    yield
    stage.answers(number)
    for target in targets:
        cancel_job(vm, target)
    yield
    for target in targets:
        vm.del_node(target)


def graph(stage: Stage) -> Iterator[None]:
    """a filter comes to its node, and goes"""
    vm = stage.vm
    yield
    numbers = []
    for driver in ('raw', 'copy-on-read', 'raw'):
        name = vm.name('wrap')
        numbers += [stage.send('blockdev-add', driver=driver, node_name=name,
                               file=vm.root(), discard='unmap'),
                    stage.send('blockdev-del', node_name=name)]
    yield
    stage.tried(*numbers)
    yield


def drive(stage: Stage) -> Iterator[None]:
    """another node takes the place of its node"""
    vm = stage.vm
    name = vm.name('wrap')
    vm.cmd('blockdev-add', driver='raw', node_name=name, file=vm.root(),
           discard='unmap')
    yield
    numbers = [stage.send('qom-set', path=DEVICE, property='drive',
                          value=value) for value in (name, vm.root()) * 2]
    yield
    stage.tried(*numbers)
    yield
    vm.cmd_when_free('blockdev-del', node_name=name)


def export(stage: Stage) -> Iterator[None]:
    """it is exported over NBD, and not any more"""
    vm = stage.vm
    vm.cmd('nbd-server-start', addr={'type': 'unix', 'data': {
        'path': vm.path(vm.name('nbd'))}})
    names = [vm.name('export') for _ in range(3)]
    vm.qmp.forget_events()
    yield
    numbers = []
    for name in names:
        numbers += [stage.send('block-export-add', type='nbd', id=name,
                               node_name=vm.top, name=name),
                    stage.send('block-export-del', id=name, mode='hard')]
    yield
    stage.tried(*numbers)
    yield
    vm.cmd('nbd-server-stop')


# ---- snapshots and jobs

def start(stage: Stage, name: str, **more) -> int:
    """Begins a job of the top that goes as fast as it can."""
    return stage.send(name, job_id='held', device=stage.vm.top,
                      auto_dismiss=False, **more)


#: seconds that a job may take to get ahead of the guest
GUARD = 1


def ended(stage: Stage) -> str:
    """The job has come to an end, and is known no more. Returns its error."""
    vm = stage.vm

    def there() -> bool:
        return job_state(vm, 'held')['status'] == 'concluded'

    late = time.monotonic() + GUARD
    wait_until('the job to end', lambda: time.monotonic() > late or there())
    slow = not there()
    if slow:
        # The guest is at work, and writes faster than the job copies.
        vm.driver.cmd('quiesce')
        wait_until('the job to end', there)
    error = job_state(vm, 'held').get('error', '')
    dismiss_job(vm, 'held')
    if slow:
        vm.driver.cmd('resume')
    return error


def concluded(stage: Stage) -> None:
    """The job has come to a good end."""
    error = ended(stage)
    if error:
        raise SoakError(f'job held: {error}')


def was_inactive(stage: Stage) -> bool:
    """The job has come to a good end, or it had to write to an inactive node."""
    error = ended(stage)
    if error and not (stage.migrated and error == os.strerror(errno.EPERM)):
        raise SoakError(f'job held: {error}')
    return bool(error)


def streamed(stage: Stage) -> None:
    """The stream has come to its end, or is begun anew."""
    if was_inactive(stage):
        stage.answers(start(stage, 'block-stream'))
        concluded(stage)


def ready(stage: Stage, name: str, **more) -> None:
    """A job that waits for being told; the driver waits as well."""
    stage.vm.driver.cmd('quiesce')
    stage.answers(start(stage, name, **more))
    wait_job(stage.vm, 'held', 'ready')


def given_up(stage: Stage) -> None:
    """The job, which would go on, is ended."""
    try:
        stage.vm.cmd('job-cancel', id='held')
    except Refused:
        # It has ended by itself in the meantime.
        was_inactive(stage)
    else:
        ended(stage)


def job(stage: Stage, name: str, end_it: Callable[[Stage], None],
        **more) -> Iterator[None]:
    """A holder's three steps: a job of the top that begins and ends."""
    yield
    number = start(stage, name, **more)
    yield
    stage.answers(number)
    end_it(stage)
    yield


def merge(stage: Stage, base: str) -> None:
    """The top of the disk goes into what is below."""
    vm = stage.vm
    ready(stage, 'block-commit')
    vm.cmd('job-complete', id='held')
    concluded(stage)
    vm.del_node(vm.top)
    vm.top = base
    vm.driver.cmd('resume')


def snapshots(stage: Stage) -> Iterator[None]:
    """a snapshot is taken"""
    vm = stage.vm
    below = vm.top
    overlay = vm.add_node('overlay', 'qcow2', backing=None)
    yield
    number = stage.send('blockdev-snapshot', node=below, overlay=overlay)
    yield
    stage.answers(number)
    vm.top = overlay
    yield
    merge(stage, below)


def commit_begin(stage: Stage) -> Iterator[None]:
    """a commit begins, and is given up"""
    base = snapshot(stage.vm, 'overlay')
    yield from job(stage, 'block-commit', given_up)
    merge(stage, base)


def commit_end(stage: Stage) -> Iterator[None]:
    """a commit ends"""
    base = snapshot(stage.vm, 'overlay')
    stage.vm.progress(50)
    ready(stage, 'block-commit')
    stage.vm.driver.cmd('resume')
    yield
    number = stage.send('job-complete', id='held')
    yield
    stage.answers(number)
    concluded(stage)
    # No disk can be plugged on a backing file.
    stage.vm.del_node(stage.vm.top)
    stage.vm.top = base
    yield


def stream(stage: Stage) -> Iterator[None]:
    """a stream begins and ends"""
    base = snapshot(stage.vm, 'overlay')
    stage.vm.progress(50)
    yield from job(stage, 'block-stream', streamed)
    stage.vm.del_node(base)
    back_to_form(stage.vm)


def copy_begin(stage: Stage, name: str) -> Iterator[None]:
    """A job that copies the top begins, and is given up."""
    target = stage.vm.add_node('target', stage.vm.config.form)
    yield from job(stage, name, given_up, target=target, sync='full')
    stage.vm.del_node(target)


def mirror_begin(stage: Stage) -> Iterator[None]:
    """a mirror begins, and is given up"""
    yield from copy_begin(stage, 'blockdev-mirror')


def mirror_end(stage: Stage) -> Iterator[None]:
    """a mirror takes its place"""
    vm = stage.vm
    target = vm.add_node('mirror', vm.config.form)
    ready(stage, 'blockdev-mirror', target=target, sync='full',
          copy_mode='write-blocking')
    vm.driver.cmd('resume')
    yield
    number = stage.send('job-complete', id='held')
    yield
    stage.answers(number)
    concluded(stage)
    top, vm.top = vm.top, target
    yield
    vm.del_node(top)


def backup_begin(stage: Stage) -> Iterator[None]:
    """a backup begins, and is given up"""
    yield from copy_begin(stage, 'blockdev-backup')


def backup_end(stage: Stage) -> Iterator[None]:
    """a backup of nothing begins and ends"""
    vm = stage.vm
    name = vm.name('bitmap')
    target = vm.add_node('backup', vm.config.form)
    vm.cmd('block-dirty-bitmap-add', node=vm.top, name=name)
    yield from job(stage, 'blockdev-backup', concluded, target=target,
                   sync='bitmap', bitmap=name, bitmap_mode='never')
    vm.cmd('block-dirty-bitmap-remove', node=vm.top, name=name)
    vm.del_node(target)


HOLDERS = (
    Part('resize', resize),
    Part('throttle', throttle_change),
    Part('group', group_change),
    Part('reopen', reopen),
    Part('drain', drains),
    Part('transaction', transaction),
    Part('graph', graph),
    Part('drive', drive),
    Part('export', export),
    Part('snapshot', snapshots),
    Part('commit-begin', commit_begin),
    Part('commit-end', commit_end),
    Part('stream', stream),
    Part('mirror-begin', mirror_begin),
    Part('mirror-end', mirror_end),
    Part('backup-begin', backup_begin),
    Part('backup-end', backup_end),
)


# ---- what ends or moves the device

def device_reset(stage: Stage) -> Iterator[None]:
    """the guest resets it"""
    for _ in range(stage.vm.chance.choice((1, 3))):
        stage.vm.driver.cmd('reset')
    yield


def queue_reset(stage: Stage) -> Iterator[None]:
    """the guest resets a queue"""
    for _ in range(stage.vm.chance.choice((1, 4))):
        stage.vm.driver.cmd('reset-queue')
    yield


def driver_away(stage: Stage) -> Iterator[None]:
    """the guest's driver goes"""
    stage.vm.driver.cmd('leave')
    yield
    stage.vm.driver.cmd('reset')


def reset_all(stage: Stage) -> None:
    """The machine; the driver is still."""
    stage.vm.qmp.forget_events()
    stage.human.cmd('system_reset')
    stage.vm.qmp.event('RESET')


def system_reset(stage: Stage) -> Iterator[None]:
    """the machine is reset"""
    stage.vm.driver.cmd('pause')
    reset_all(stage)
    yield
    stage.vm.driver.cmd('start')
    stage.vm.driver.cmd('resume')


def stop_cont(stage: Stage) -> Iterator[None]:
    """the machine is paused"""
    stage.vm.driver.cmd('pause')
    stage.human.cmd('stop')
    yield
    go_on(stage)


def go_on(stage: Stage) -> None:
    """The machine, and the disk with it."""
    stage.human.cmd('cont')
    stage.vm.driver.cmd('notifiers')
    stage.vm.driver.cmd('resume')


def stop_reset(stage: Stage) -> Iterator[None]:
    """the machine is paused, and reset"""
    stage.vm.driver.cmd('pause')
    stage.human.cmd('stop')
    reset_all(stage)
    yield
    stage.human.cmd('cont')
    stage.vm.driver.cmd('start')
    stage.vm.driver.cmd('resume')


def switchover(stage: Stage) -> Iterator[None]:
    """it is migrated, and comes back"""
    stage.migrated = True
    # Its vCPUs are going to be stopped, and no event tells when.
    stage.vm.driver.cmd('pause')
    stage.human.cmd('migrate -d "exec:cat > /dev/null"')
    wait_until('the end of the migration', lambda: any(
        word in stage.human.cmd('info migrate')
        for word in ('completed', 'failed', 'cancelled')))
    # Images are inactive until then, and jobs are refused.
    go_on(stage)
    yield


def take_away(stage: Stage, polite: bool) -> None:
    """The guest lets the disk go, after a reset if polite."""
    stage.vm.plugs += 1
    if polite:
        stage.vm.driver.cmd('leave')
    stage.vm.driver.cmd('eject')


def bring_back(stage: Stage) -> None:
    """The pair of take_away()."""
    stage.vm.qmp.event('DEVICE_DELETED', device=DEVICE)
    plug(stage.vm)


def unplug_guest(stage: Stage) -> Iterator[None]:
    """the guest ejects it"""
    stage.vm.qmp.forget_events()
    take_away(stage, False)
    yield
    bring_back(stage)


def unplug(stage: Stage) -> Iterator[None]:
    """it is unplugged"""
    stage.vm.qmp.forget_events()
    stage.human.cmd(f'device_del {DEVICE}')
    take_away(stage, stage.vm.chance.random() < 0.5)
    yield
    bring_back(stage)


def iothread(stage: Stage) -> Iterator[None]:
    """it comes to another IOThread"""
    vm = stage.vm
    vm.iothreads = vm.chance.sample(range(vm.config.iothreads + 1),
                                    vm.chance.choice((1, vm.config.iothreads)))
    yield from unplug(stage)


MOVERS = (
    Part('device-reset', device_reset),
    # There, requests of a queue that was reset go on.
    Part('queue-reset', queue_reset, plane=True),
    Part('driver-away', driver_away),
    Part('system-reset', system_reset),
    Part('stop-cont', stop_cont),
    Part('stop-reset', stop_reset),
    Part('migrate', switchover),
    Part('eject', unplug_guest),
    Part('unplug', unplug),
    Part('iothread', iothread),
)


# ---- pairs

#: when a mover begins, in parts of the time that its holder takes alone
MOMENTS = (0, 0.5, 0.9)
#: seconds for which a holder may go on as slowly after that, and for which it
#: does so at most when it is alone
MORE = 0.3
LONGEST = 1
#: requests per second: to metadata, and to images with the guest's data
SLOW = (20, 50, 150)
SLOW_ALL = (100, 300, 1000)


def hold(stage: Stage, holder: Part, mover: Part, moment: float) -> None:
    """A holder, and a mover after so many seconds of it."""
    stage.migrated = False
    held = holder.run(stage)
    next(held)
    stage.slow(True)
    next(held)
    time.sleep(moment)
    moved = mover.run(stage)
    next(moved)
    time.sleep(stage.vm.chance.choice((0, MORE)))
    stage.slow(False)
    next(held)
    end(moved)
    end(held)
    stage.vm.progress(50)


def measure(stage: Stage, holder: Part) -> float:
    """Seconds that a holder takes alone."""
    held = holder.run(stage)
    next(held)
    stage.slow(True)
    timer = threading.Timer(LONGEST, stage.slow, (False,))
    timer.start()
    begin = time.monotonic()
    next(held)
    next(held)
    length = time.monotonic() - begin
    timer.cancel()
    timer.join()
    stage.slow(False)
    end(held)
    return length


def end(steps: Iterator[None]) -> None:
    """The last step."""
    for _ in steps:
        raise SoakError('a holder or mover does not end where it should')


def overlap(stage: Stage, holder: Part, mover: Part) -> None:
    """
    A holder with a mover at each moment.

    covers: D1, D2, D3, D5, D6, M5, M6, M8, M9, M10
    """
    vm = stage.vm
    vm.clock(True)
    if holder.name not in stage.lengths:
        stage.lengths[holder.name] = measure(stage, holder)
    for moment in vm.chance.sample(MOMENTS, len(MOMENTS)):
        hold(stage, holder, mover, moment * stage.lengths[holder.name])
    vm.clock(False)


def stage_of(vm: Machine) -> Stage:
    """One for each machine."""
    if vm.stage is None:
        choice = SLOW if vm.config.data_file else SLOW_ALL
        vm.stage = Stage(vm, vm.human_monitor(), vm.chance.choice(choice))
    return vm.stage


def pair(holder: Part, mover: Part) -> Scenario:
    """The scenario that two make."""
    def run(vm: Machine) -> None:
        overlap(stage_of(vm), holder, mover)
    run.__doc__ = f'{holder.run.__doc__} while {mover.run.__doc__}'
    return Scenario(f'{holder.name}+{mover.name}', run, slow=True,
                    plane=mover.plane)


SCENARIOS: List[Scenario] = [
    pair(holder, mover) for holder in HOLDERS for mover in MOVERS]
