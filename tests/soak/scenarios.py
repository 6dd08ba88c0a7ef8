# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What is done to a disk while its driver keeps every queue full.

Each scenario finds a machine whose driver is at work, on one node without a
backing file, and leaves it so. What is left to chance comes from vm.chance.
The driver verifies all the time; a scenario looks only at what is its own.
"""

import os
import time
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

from machine import (BACKEND, DEVICE, DISK_MIB, MIB, Hang, Machine, Refused,
                     SoakError, set_queue_iothread, wait_until)


@dataclass(frozen=True)
class Scenario:
    """
    forms: the image formats with which it can be done
    throttled: on a throttle filter; None: there or elsewhere
    remote: it needs another host
    slow: it needs a machine with slow metadata, where it is the only kind
    plane: QEMU's own path cannot do it
    """
    name: str
    run: Callable[[Machine], None]
    forms: Tuple[str, ...] = ('qcow2', 'raw')
    throttled: Optional[bool] = None
    remote: bool = False
    slow: bool = False
    plane: bool = False

    def fits(self, vm: Machine) -> bool:
        """Can it be done on this machine?"""
        return vm.config.form in self.forms \
            and self.throttled in (None, vm.config.throttled) \
            and self.slow == vm.config.slow \
            and not (self.plane and vm.tools.stock) \
            and (vm.network is not None or not self.remote)


# ---- the machine and the device

def stop_cont(vm: Machine) -> None:
    """covers: D6, D11, M9: the machine is paused and goes on"""
    for _ in range(5):
        pause(vm)
        go_on(vm)


def pause(vm: Machine) -> None:
    """As with vCPUs, the driver stops first."""
    vm.driver.cmd('pause')
    vm.cmd('stop')


def go_on(vm: Machine, requests: int = 100) -> None:
    """The pair of pause()."""
    vm.cmd('cont')
    vm.driver.cmd('notifiers')
    vm.resume(requests)


def pause_unchanged(vm: Machine) -> None:
    """covers: M5, D6: resized, queried and throttled while it is paused"""
    pause(vm)
    vm.cmd('block_resize', node_name=vm.root(), size=(DISK_MIB + 1) * MIB)
    throttle(vm, iops=200)
    vm.cmd('query-blockstats')
    go_on(vm, 20)
    pause(vm)
    throttle(vm)
    vm.cmd('block_resize', node_name=vm.root(), size=DISK_MIB * MIB)
    go_on(vm)


def system_reset(vm: Machine) -> None:
    """covers: M8: the machine is reset in mid-flight"""
    for _ in range(3):
        vm.driver.cmd('pause')
        vm.qmp.forget_events()
        vm.cmd('system_reset')
        vm.qmp.event('RESET')
        vm.driver.cmd('start')
        vm.resume(100)


def device_reset(vm: Machine) -> None:
    """covers: M8: status 0 in mid-flight, again and again"""
    for _ in range(10):
        vm.driver.cmd('reset')
        vm.progress(vm.chance.choice((1, 50, 200)))


def reset_throttled(vm: Machine) -> None:
    """covers: M8, D1, D2: status 0 while requests are held by a throttle"""
    for _ in range(3):
        throttle(vm, iops=20)
        vm.progress(5)
        vm.driver.cmd('reset')
        throttle(vm)
        vm.progress(100)


def reset_paused(vm: Machine) -> None:
    """covers: M8, D5: the machine is reset while it is paused"""
    pause(vm)
    vm.qmp.forget_events()
    vm.cmd('system_reset')
    vm.qmp.event('RESET')
    vm.cmd('cont')
    vm.driver.cmd('start')
    vm.resume()


def driver_away(vm: Machine) -> None:
    """covers: M8: the guest's driver goes and comes again (unbind, bind)"""
    for _ in range(3):
        vm.driver.cmd(vm.chance.choice(('quiesce', 'where')))
        vm.driver.cmd('leave')
        vm.cmd('block_resize', node_name=vm.root(), size=DISK_MIB * MIB)
        vm.driver.cmd('reset')
        vm.resume()


# ---- hot plug

def plug(vm: Machine) -> None:
    """The disk comes back and works."""
    # DEVICE_DELETED comes before RCU lets the last device's backend go.
    why = ''
    def added() -> bool:
        nonlocal why
        try:
            vm.cmd('device_add', vm.device())
        except Refused as error:
            why = str(error)
            return False
        return True
    vm.plugs += 1
    try:
        wait_until('the node to be free again', added)
    except Hang as error:
        raise Hang(f'{error}: {why}') from None
    vm.plugs += 1
    vm.driver.cmd('start')
    vm.resume(50)


def unplug(vm: Machine, polite: bool) -> None:
    """The guest lets the disk go, after a reset if polite."""
    vm.qmp.forget_events()
    vm.plugs += 1
    vm.cmd('device_del', id=DEVICE)
    if polite:
        vm.driver.cmd('leave')
    vm.driver.cmd('eject')
    vm.qmp.event('DEVICE_DELETED', device=DEVICE)


def hotplug(vm: Machine) -> None:
    """covers: D4, D10, M6: the disk is unplugged under load and comes back"""
    for i in range(4):
        unplug(vm, i % 2 == 0)
        plug(vm)


def unplug_unanswered(vm: Machine) -> None:
    """covers: M6: a guest that answers an unplug request late, or with reset"""
    vm.qmp.forget_events()
    vm.cmd('device_del', id=DEVICE)
    vm.progress()
    pause(vm)
    go_on(vm)
    vm.driver.cmd('reset')
    vm.progress()
    vm.plugs += 1
    if vm.chance.random() < 0.5:
        vm.driver.cmd('eject')
    else:
        vm.driver.cmd('pause')
        vm.cmd('system_reset')
    vm.qmp.event('DEVICE_DELETED', device=DEVICE)
    vm.driver.cmd('lost')
    plug(vm)


# ---- what changes beneath the device

def move_queues(vm: Machine) -> None:
    """covers: E14: queues move to an IOThread that comes, and goes again"""
    vm.cmd('object-add', qom_type='iothread', id='moved')
    for _ in range(4 * vm.config.queues):
        set_queue_iothread(vm.qmp, vm.chance.randrange(vm.config.queues),
                           vm.chance.choice(['moved', *vm.all_iothreads()]))
        vm.progress(20)
    vm.cmd('object-del', id='moved')
    for queue in range(vm.config.queues):
        set_queue_iothread(vm.qmp, queue,
                           vm.chance.choice(vm.all_iothreads()))
    wait_until('the queues to leave an IOThread', lambda: not any(
        'moved' in (queue['iothread'], queue.get('moving-to'))
        for queue in vm.plane()['queues']))


def resize(vm: Machine) -> None:
    """covers: M5: the disk grows and shrinks, and the guest sees it"""
    for i in range(6):
        size = (DISK_MIB + (i + 1) % 3) * MIB
        vm.cmd('block_resize', node_name=vm.root(), size=size)
        wait_until('the guest to see the new size', lambda s=size:
                   int(vm.driver.cmd('capacity')) == s // 512)
        vm.progress(50)


def expect_refusal(vm: Machine, words: str, name: str, /, **arguments) -> None:
    """QEMU must refuse a command, with these words."""
    try:
        vm.cmd(name, **arguments)
    except Refused as error:
        if words not in str(error):
            raise
    else:
        raise SoakError(f'QEMU does not refuse {name}')


def change_medium(vm: Machine) -> None:
    """covers: M10: the medium is no removable one; its node is replaced"""
    medium = vm.path('medium')
    vm.img('create', '-q', '-f', 'raw', medium, '1M')
    for _ in range(3):
        expect_refusal(vm, 'not removable', 'eject', id=BACKEND)
        expect_refusal(vm, 'not removable', 'eject', id=BACKEND, force=True)
        expect_refusal(vm, 'not removable', 'blockdev-remove-medium',
                       id=BACKEND)
        expect_refusal(vm, 'not removable', 'blockdev-change-medium',
                       id=BACKEND, filename=medium, format='raw')
        vm.cmd('blockdev-add', driver='raw', node_name='wrap',
               file=vm.root(), discard='unmap')
        for drive in ('wrap', vm.root()):
            vm.cmd('qom-set', path=DEVICE, property='drive', value=drive)
            vm.progress(50)
        vm.cmd('blockdev-del', node_name='wrap')


def reopen(vm: Machine) -> None:
    """covers: M10, D3: the node is reopened with other options"""
    old = vm.nodes[vm.top]
    for discard in ('ignore', 'unmap', 'ignore', 'unmap'):
        options = {**old, 'file': old['file']['node-name'],
                   'discard': discard}
        if vm.config.form == 'qcow2':
            options['l2-cache-size'] = vm.chance.choice((1, 2)) * MIB
            options['lazy-refcounts'] = False
        vm.cmd('blockdev-reopen', options=[options])
        vm.progress(50)


def detect_zeroes(vm: Machine) -> None:
    """zeroes that the guest writes are detected, and not any more"""
    options = vm.nodes[vm.top]
    for detect in ('on', 'unmap', 'off'):
        vm.cmd('blockdev-reopen', options=[
            {**options, 'detect-zeroes': detect}])
        vm.progress(50)


def write_threshold(vm: Machine) -> None:
    """an event tells that the guest has written beyond a threshold"""
    for _ in range(5):
        vm.qmp.forget_events()
        vm.cmd('block-set-write-threshold', node_name=vm.top,
               write_threshold=vm.chance.randrange(1, DISK_MIB // 2) * MIB)
        vm.qmp.event('BLOCK_WRITE_THRESHOLD', **{'node-name': vm.top})
        vm.progress(50)


def filters_above(vm: Machine) -> None:
    """covers: E11: filters are opened above a node in use, and go again"""
    vm.cmd('object-add', qom_type='throttle-group', id='above')
    for _ in range(10):
        for node in (vm.top, vm.root()):
            for more in ({'driver': 'throttle', 'throttle-group': 'above'},
                         {'driver': 'copy-on-read'}):
                vm.cmd('blockdev-add', {**more, 'node-name': 'above',
                                        'file': node})
                vm.progress(20)
                vm.cmd('blockdev-del', node_name='above')
    vm.cmd('object-del', id='above')


# ---- throttle and drain

LIMITS = ('bps', 'bps_rd', 'bps_wr', 'iops', 'iops_rd', 'iops_wr')


def throttle(vm: Machine, **limits) -> None:
    """Sets the device's limits; without any, removes them."""
    vm.clock(bool(limits))
    vm.cmd('block_set_io_throttle', {'id': BACKEND, **dict.fromkeys(LIMITS, 0),
                                     **limits})


def throttle_changes(vm: Machine) -> None:
    """covers: D1: limits are reached, changed and removed"""
    for _ in range(6):
        throttle(vm, iops=vm.chance.choice((100, 500)), bps=20 * MIB)
        vm.progress(20)
        throttle(vm, iops_rd=50, iops_wr=vm.chance.choice((30, 3000)))
        vm.progress(10)
        throttle(vm)
        vm.progress(100)


def throttle_toggle(vm: Machine) -> None:
    """covers: D1: limits that are never reached come and go, fast"""
    for _ in range(100):
        throttle(vm, iops=10_000_000)
        throttle(vm)
    vm.progress()


def throttle_group(vm: Machine) -> None:
    """covers: D1: the same with the limits of a group, on a filter"""
    def limit(iops: int) -> None:
        vm.cmd('qom-set', path='/objects/group', property='limits',
               value={'iops-total': iops, 'iops-total-max': 0})
    vm.clock(True)
    for _ in range(6):
        limit(vm.chance.choice((50, 500)))
        vm.progress(10)
        limit(vm.chance.choice((60, 5000)))
        vm.progress(20)
        limit(0)
        vm.progress(100)
    vm.clock(False)


def drain_many(vm: Machine) -> None:
    """covers: D2, D3, D5: drained sections one within the other"""
    for _ in range(4):
        if vm.chance.random() < 0.5:
            throttle(vm, iops=1000)
        actions = []
        for _ in range(4):
            actions.append({'type': 'block-dirty-bitmap-add', 'data': {
                'node': vm.top, 'name': vm.name('bitmap')}})
            target = vm.add_node('nested', vm.config.form)
            actions.append({'type': 'blockdev-backup', 'data': {
                'job-id': target, 'device': vm.top, 'target': target,
                'sync': 'none', 'auto-dismiss': False}})
        vm.cmd('transaction', actions=actions)
        vm.progress(20)
        throttle(vm)
        for action in actions:
            data = action['data']
            if action['type'] == 'block-dirty-bitmap-add':
                vm.cmd('block-dirty-bitmap-remove', node=vm.top,
                       name=data['name'])
            else:
                cancel_job(vm, data['job-id'])
                vm.del_node(data['target'])
        vm.progress(50)


def drain_places(vm: Machine) -> None:
    """covers: D2, D3, D5: drained sections begun at several places at once"""
    for _ in range(6):
        if vm.chance.random() < 0.5:
            throttle(vm, iops=200)
        sizes = [vm.qmp.send('block_resize', node_name=vm.root(),
                             size=(DISK_MIB + i % 2) * MIB)
                 for i in (1, 2)]
        other = vm.qmp.send('human-monitor-command',
                            command_line=f'qemu-io -d {BACKEND} flush')
        drain = vm.qmp.send('human-monitor-command',
                            command_line=f'qemu-io -d {BACKEND} aio_flush')
        for number in (*sizes, other, drain):
            vm.qmp.answer(number, 'one of several drains')
        throttle(vm)
        vm.progress(50)


# ---- jobs

def job_state(vm: Machine, job: str) -> dict:
    """What query-jobs says of one."""
    for info in vm.cmd('query-jobs'):
        if info['id'] == job:
            return info
    raise SoakError(f'job {job} is gone')


def wait_job(vm: Machine, job: str, *states: str) -> str:
    """Waits until a job has come to one of these states."""
    def reached() -> str:
        info = job_state(vm, job)
        if info['status'] == 'concluded' and info.get('error'):
            raise SoakError(f"job {job}: {info['error']}")
        return info['status'] if info['status'] in states else ''
    return wait_until(f"job {job} to be {' or '.join(states)}", reached)


def dismiss_job(vm: Machine, job: str) -> None:
    """A job that has ended goes."""
    vm.cmd('job-dismiss', id=job)


def finish_job(vm: Machine, job: str) -> None:
    """Until its good end."""
    wait_job(vm, job, 'concluded')
    dismiss_job(vm, job)


#: seconds that a job may take to keep up with the load
READY_GUARD = 2


def wait_ready(vm: Machine, job: str) -> None:
    """Waits for a job that follows the load, and helps it to catch up."""
    end = time.monotonic() + READY_GUARD
    wait_until(f'job {job} to be ready', lambda: time.monotonic() > end
               or job_state(vm, job)['status'] != 'running')
    if job_state(vm, job)['status'] != 'ready':
        vm.driver.cmd('quiesce')
        wait_job(vm, job, 'ready')
        vm.resume(50)


def complete_job(vm: Machine, job: str) -> None:
    """One that waits for being told."""
    wait_ready(vm, job)
    vm.cmd('job-complete', id=job)
    # It ends once all has been copied at some moment, which need not come
    # while the guest writes faster than the target takes.
    end = time.monotonic() + READY_GUARD
    wait_until(f'job {job} to end', lambda: time.monotonic() > end
               or job_state(vm, job)['status'] == 'concluded')
    if job_state(vm, job)['status'] == 'concluded':
        dismiss_job(vm, job)
        return
    vm.driver.cmd('quiesce')
    finish_job(vm, job)
    vm.resume(20)


def cancel_job(vm: Machine, job: str) -> None:
    """Whatever state it is in."""
    try:
        vm.cmd('job-cancel', id=job)
    except Refused:
        # It has ended by itself in the meantime.
        wait_job(vm, job, 'concluded')
    wait_until(f'job {job} to end', lambda:
               job_state(vm, job)['status'] == 'concluded')
    dismiss_job(vm, job)


def trouble_job(vm: Machine, job: str) -> None:
    """Pauses and resumes a job that was begun slowly, then hurries it."""
    for _ in range(vm.chance.randrange(3)):
        try:
            vm.cmd('job-pause', id=job)
        except Refused:
            break
        vm.progress(20)
        vm.cmd('job-resume', id=job)
        vm.progress(20)
    try:
        vm.cmd('block-job-set-speed', device=job, speed=0)
    except Refused:
        # It has ended in the meantime.
        pass


def start_job(vm: Machine, name: str, device: str, **more) -> str:
    """Begins a job so that it takes a while; returns its name."""
    job = vm.name('job')
    vm.cmd(name, job_id=job, device=device, speed=4 * MIB,
           auto_dismiss=False, **more)
    return job


def backup(vm: Machine) -> None:
    """covers: M1, M10: a backup holds what the disk held when it began"""
    target = vm.add_node('backup', vm.config.form)
    copy = vm.copy('copy')
    job = start_job(vm, 'blockdev-backup', vm.top, target=target, sync='full')
    vm.resume(50)
    trouble_job(vm, job)
    finish_job(vm, job)
    vm.compare(copy, vm.del_node(target, keep=True), vm.config.form)


def backup_cancel(vm: Machine) -> None:
    """covers: M10: a backup that is given up"""
    for _ in range(2):
        target = vm.add_node('backup', vm.config.form)
        job = start_job(vm, 'blockdev-backup', vm.top, target=target,
                        sync='full')
        vm.progress(50)
        cancel_job(vm, job)
        vm.del_node(target)


def backup_bitmap(vm: Machine) -> None:
    """covers: M1, M10: what a bitmap says is backed up, begun under load"""
    for _ in range(4):
        name = vm.name('bitmap')
        target = vm.add_node('backup', vm.config.form)
        vm.cmd('block-dirty-bitmap-add', node=vm.top, name=name)
        vm.progress(50)
        job = start_job(vm, 'blockdev-backup', vm.top, target=target,
                        sync='bitmap', bitmap=name, bitmap_mode='never')
        trouble_job(vm, job)
        finish_job(vm, job)
        vm.cmd('block-dirty-bitmap-remove', node=vm.top, name=name)
        vm.del_node(target)


def start_mirror(vm: Machine) -> Tuple[str, str]:
    """Returns the target and the job."""
    target = vm.add_node('mirror', vm.config.form)
    modes = ('background', 'write-blocking')
    job = start_job(vm, 'blockdev-mirror', vm.top, target=target, sync='full',
                    copy_mode=vm.chance.choice(modes))
    return target, job


def pivot(vm: Machine, target: str, job: str) -> None:
    """The target takes the disk's place."""
    complete_job(vm, job)
    vm.del_node(vm.top)
    vm.top = target
    vm.progress()
    vm.driver.cmd('verify')
    vm.resume()


def mirror(vm: Machine) -> None:
    """covers: M1, M10: a mirror takes the disk's place"""
    target, job = start_mirror(vm)
    vm.progress(50)
    trouble_job(vm, job)
    pivot(vm, target, job)


def keep_mirror(vm: Machine, target: str, job: str) -> None:
    """Ends a mirror that is ready, and compares it with the disk."""
    copy = vm.copy('copy')
    vm.cmd('block-job-cancel', device=job)
    finish_job(vm, job)
    vm.resume(50)
    vm.compare(copy, vm.del_node(target, keep=True), vm.config.form)


def mirror_copy(vm: Machine) -> None:
    """covers: M1, M10: a mirror that is ended holds what the disk holds"""
    target, job = start_mirror(vm)
    trouble_job(vm, job)
    wait_ready(vm, job)
    vm.progress()
    keep_mirror(vm, target, job)


def mirror_blocking(vm: Machine) -> None:
    """covers: M1, D3: writes wait for their copies, and for one another"""
    target = vm.add_node('mirror', vm.config.form)
    job = vm.name('job')
    vm.cmd('blockdev-mirror', job_id=job, device=vm.top, target=target,
           sync='full', copy_mode='write-blocking', granularity=4 * MIB,
           auto_dismiss=False)
    wait_ready(vm, job)
    vm.progress(1000)
    keep_mirror(vm, target, job)


def mirror_cancel(vm: Machine) -> None:
    """covers: M10: a mirror that is given up in the middle"""
    target, job = start_mirror(vm)
    vm.progress(100)
    cancel_job(vm, job)
    vm.del_node(target)
    vm.progress(50)


def mirror_across(vm: Machine) -> None:
    """covers: D3, M1, M8, M10: a mirror goes on across all sorts of events"""
    target, job = start_mirror(vm)
    events = [stop_cont, device_reset, system_reset, throttle_changes]
    vm.chance.shuffle(events)
    for event in events[:2]:
        event(vm)
    trouble_job(vm, job)
    pivot(vm, target, job)


# ---- snapshots

def snapshot(vm: Machine, kind: str) -> str:
    """An empty image on top; returns the one below, which is in use."""
    below = vm.top
    overlay = vm.add_node(kind, 'qcow2', backing=None)
    vm.cmd('blockdev-snapshot', node=below, overlay=overlay)
    vm.top = overlay
    return below


def commit(vm: Machine) -> None:
    """covers: M10: snapshot, then commit of the active image"""
    for i in range(2):
        base = snapshot(vm, 'overlay')
        vm.progress()
        job = start_job(vm, 'block-commit', vm.top)
        if i == 0:
            vm.progress(20)
            cancel_job(vm, job)
            job = start_job(vm, 'block-commit', vm.top)
        trouble_job(vm, job)
        complete_job(vm, job)
        vm.del_node(vm.top)
        vm.top = base
        vm.progress()


def commit_below(vm: Machine) -> None:
    """covers: M2, M10: two snapshots; what is between is committed"""
    base = snapshot(vm, 'middle')
    middle = vm.top
    vm.progress()
    snapshot(vm, 'overlay')
    vm.progress()
    job = start_job(vm, 'block-commit', vm.top, top_node=middle,
                    base_node=base)
    trouble_job(vm, job)
    finish_job(vm, job)
    vm.del_node(middle)
    flatten(vm, base)


def flatten(vm: Machine, base: str) -> None:
    """The top of the disk takes all in that is below it."""
    job = start_job(vm, 'block-stream', vm.top)
    trouble_job(vm, job)
    finish_job(vm, job)
    vm.del_node(base)
    back_to_form(vm)


def back_to_form(vm: Machine) -> None:
    """Overlays are qcow2: a raw disk becomes one again by a mirror."""
    if vm.config.form != 'qcow2':
        mirror(vm)


def stream(vm: Machine) -> None:
    """covers: M10: snapshot, then stream of the old image into the new"""
    base = snapshot(vm, 'overlay')
    vm.progress()
    job = start_job(vm, 'block-stream', vm.top)
    vm.progress(50)
    cancel_job(vm, job)
    flatten(vm, base)


def snapshot_kept(vm: Machine) -> None:
    """covers: M10: what is below a snapshot holds what the disk held"""
    copy = vm.copy('copy')
    base = snapshot(vm, 'overlay')
    form = vm.nodes[base]['driver']
    vm.resume()
    job = start_job(vm, 'block-stream', vm.top)
    trouble_job(vm, job)
    finish_job(vm, job)
    vm.compare(copy, vm.del_node(base, keep=True), form)
    back_to_form(vm)


def internal_snapshot(vm: Machine) -> None:
    """covers: M2, M10: internal snapshots, made, read and deleted"""
    for _ in range(3):
        name = vm.name('inside')
        copy = vm.copy('copy')
        vm.cmd('blockdev-snapshot-internal-sync', device=vm.root(), name=name)
        vm.resume()
        image = vm.path('extracted')
        vm.img('convert', '-U', '-l', f'snapshot.name={name}', '-O', 'raw',
               vm.nodes[vm.top]['file']['filename'], image)
        vm.compare(copy, image, 'raw')
        vm.cmd('blockdev-snapshot-delete-internal-sync', device=vm.root(),
               name=name)
        vm.progress(50)


def snapshot_undone(vm: Machine) -> None:
    """covers: E12: a snapshot is undone as another one cannot be made"""
    overlay = vm.add_node('undone', 'qcow2', backing=None)
    for _ in range(20):
        expect_refusal(vm, 'not-there', 'transaction', actions=[
            {'type': 'blockdev-snapshot',
             'data': {'node': vm.top, 'overlay': overlay}},
            {'type': 'blockdev-snapshot',
             'data': {'node': 'not-there', 'overlay': 'nor-this'}}])
        vm.progress(50)
    vm.del_node(overlay)


# ---- bitmaps

def bitmap_count(vm: Machine, name: str) -> int:
    """Dirty bytes of a bitmap."""
    for info in vm.cmd('query-named-block-nodes', flat=True):
        for bitmap in info.get('dirty-bitmaps', []):
            if info['node-name'] == vm.top and bitmap.get('name') == name:
                return int(bitmap['count'])
    raise SoakError(f'bitmap {name} is gone')


def bitmaps(vm: Machine) -> None:
    """covers: M1: incremental backup by bitmaps that were merged"""
    form = vm.config.form
    target = vm.add_node('base', form)
    vm.driver.cmd('quiesce')
    vm.cmd('transaction', actions=[
        {'type': 'block-dirty-bitmap-add',
         'data': {'node': vm.top, 'name': 'one'}},
        {'type': 'blockdev-backup',
         'data': {'job-id': 'full', 'device': vm.top, 'target': target,
                  'sync': 'full', 'auto-dismiss': False}}])
    vm.resume()
    finish_job(vm, 'full')
    vm.driver.cmd('quiesce')
    vm.cmd('transaction', actions=[
        {'type': 'block-dirty-bitmap-add',
         'data': {'node': vm.top, 'name': 'two'}},
        {'type': 'block-dirty-bitmap-disable',
         'data': {'node': vm.top, 'name': 'one'}}])
    vm.resume()
    if not bitmap_count(vm, 'one') or not bitmap_count(vm, 'two'):
        raise SoakError('a bitmap has missed what was written')
    copy = vm.copy('copy')
    vm.cmd('block-dirty-bitmap-add', node=vm.top, name='sum', disabled=True)
    vm.cmd('block-dirty-bitmap-merge', node=vm.top, target='sum',
           bitmaps=['one', 'two'])
    job = start_job(vm, 'blockdev-backup', vm.top, target=target,
                    sync='bitmap', bitmap='sum', bitmap_mode='never')
    vm.resume(50)
    trouble_job(vm, job)
    finish_job(vm, job)
    for name in ('one', 'two', 'sum'):
        vm.cmd('block-dirty-bitmap-remove', node=vm.top, name=name)
    vm.compare(copy, vm.del_node(target, keep=True), form)


# ---- exports

def export(vm: Machine) -> None:
    """covers: D3, M10: the disk is exported over NBD, read there, let go"""
    socket = vm.path('nbd')
    vm.cmd('nbd-server-start',
           addr={'type': 'unix', 'data': {'path': socket}})
    for i in range(6):
        name = vm.name('export')
        vm.qmp.forget_events()
        vm.cmd('block-export-add', type='nbd', id=name, node_name=vm.top,
               name='disk')
        vm.progress(20)
        if i % 3 == 0:
            copy = vm.copy('copy')
            vm.img('compare', '-f', 'raw', '-F', 'raw', copy,
                   f'nbd+unix:///disk?socket={socket}')
            os.unlink(copy)
            vm.resume(20)
        vm.cmd('block-export-del', id=name, mode='hard')
        vm.qmp.event('BLOCK_EXPORT_DELETED', id=name)
        vm.progress(20)
    vm.cmd('nbd-server-stop')


SCENARIOS = (
    Scenario('stop-cont', stop_cont),
    Scenario('pause-unchanged', pause_unchanged),
    Scenario('system-reset', system_reset),
    Scenario('device-reset', device_reset),
    Scenario('reset-throttled', reset_throttled),
    Scenario('reset-paused', reset_paused),
    Scenario('driver-away', driver_away),
    Scenario('hotplug', hotplug),
    Scenario('unplug-unanswered', unplug_unanswered),
    Scenario('move-queues', move_queues, plane=True),
    Scenario('resize', resize),
    Scenario('change-medium', change_medium),
    Scenario('reopen', reopen),
    Scenario('detect-zeroes', detect_zeroes),
    Scenario('write-threshold', write_threshold),
    Scenario('filters-above', filters_above),
    Scenario('throttle-changes', throttle_changes),
    Scenario('throttle-toggle', throttle_toggle),
    Scenario('throttle-group', throttle_group, throttled=True),
    Scenario('drain-many', drain_many),
    Scenario('drain-places', drain_places),
    Scenario('backup', backup),
    Scenario('backup-cancel', backup_cancel),
    Scenario('backup-bitmap', backup_bitmap),
    Scenario('mirror', mirror, throttled=False),
    Scenario('mirror-copy', mirror_copy, throttled=False),
    Scenario('mirror-blocking', mirror_blocking, throttled=False),
    Scenario('mirror-cancel', mirror_cancel, throttled=False),
    Scenario('mirror-across', mirror_across, throttled=False),
    Scenario('commit', commit, throttled=False),
    Scenario('commit-below', commit_below, throttled=False),
    Scenario('stream', stream),
    Scenario('snapshot-kept', snapshot_kept),
    Scenario('snapshot-undone', snapshot_undone),
    Scenario('internal-snapshot', internal_snapshot, ('qcow2',)),
    Scenario('bitmaps', bitmaps),
    Scenario('export', export),
)
