# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
One throttle group of several disks, each under load in IOThreads of its own.

See scenarios.py for what holds for all scenarios.  Requests of one disk are
set going by timers and by requests of the other, in the other's thread.
"""

import json
from typing import Any, Callable, List

from machine import (BACKEND, DISK_MIB, EJECT, MIB, Machine, Refused,
                     wait_until)
from scenarios import LIMITS, Scenario, pause, plug, unplug

SLOT = 5
DEVICE = 'd1'
GROUP = 'shared'


class Second:
    """
    A second disk, with a load of its own.

    image: the node of its image
    node: what it stands on, that or a filter
    """

    def __init__(self, vm: Machine, group: str = ''):
        self._vm = vm
        self._iothread = vm.name('iothread')
        self.image = vm.add_node('second', vm.config.form)
        self.node = self.image
        self.backend = f'/machine/peripheral/{DEVICE}/virtio-backend'
        if group:
            self.node = vm.name('filter')
            vm.cmd('blockdev-add', driver='throttle', node_name=self.node,
                   throttle_group=group, file=self.image)
        vm.cmd('object-add', {'qom-type': 'iothread'}, id=self._iothread)
        self.cmd('empty')
        self.plug()

    def cmd(self, *words: Any) -> str:
        """A command of the driver."""
        return self._vm.driver.cmd('@1', *words)

    def requests(self) -> int:
        """That have been completed."""
        return json.loads(self.cmd('stats'))['requests']

    def plug(self) -> None:
        """It appears and works."""
        device = {'driver': 'virtio-blk-pci', 'id': DEVICE, 'drive': self.node,
                  'addr': f'{SLOT:x}', 'num-queues': self._vm.config.queues,
                  'iothread': self._iothread}
        if self._vm.tools.stock:
            device['x-data-plane'] = 'off'
        def added() -> bool:
            try:
                self._vm.cmd('device_add', device)
            except Refused:
                return False
            return True
        wait_until('the second node to be free', added)
        self.cmd('start')
        self.cmd('resume')

    def unplug(self) -> None:
        """In mid-flight."""
        self._vm.qmp.forget_events()
        self._vm.cmd('device_del', id=DEVICE)
        self._vm.driver.cmd('out', EJECT, 1 << SLOT, 4)
        self.cmd('lost')
        self._vm.qmp.event('DEVICE_DELETED', device=DEVICE)

    def join(self, group: str) -> None:
        """Its filter goes to another group."""
        self._vm.cmd('blockdev-reopen', options=[{
            'driver': 'throttle', 'node-name': self.node,
            'throttle-group': group, 'file': self.image}])

    def remove(self) -> None:
        """All of it is verified, and goes."""
        self.cmd('verify')
        self.unplug()
        if self.node != self.image:
            self._vm.cmd_when_free('blockdev-del', node_name=self.node)
        self._vm.del_node(self.image, unplugged=True)
        self._vm.cmd('object-del', id=self._iothread)


def both(vm: Machine, second: Second, requests: int) -> None:
    """Waits until each disk has completed so many more."""
    before = second.requests()
    vm.progress(requests)
    wait_until(f'{requests} more requests of the second disk', lambda:
               second.requests() >= before + requests)


def stop_both(vm: Machine, second: Second) -> None:
    """The machine is paused, and goes on."""
    pause(vm)
    vm.cmd('cont')
    second.cmd('notifiers')
    vm.driver.cmd('notifiers')
    vm.resume(5)


def reset_first(vm: Machine, _second: Second) -> None:
    """One disk is reset while both wait."""
    vm.driver.cmd('reset')


def reset_second(_vm: Machine, second: Second) -> None:
    """Or the other."""
    second.cmd('reset')


def drain_both(vm: Machine, second: Second) -> None:
    """Drained sections begun on both at once."""
    numbers = [vm.qmp.send('human-monitor-command',
                           command_line=f'qemu-io -d {backend} flush')
               for backend in (BACKEND, second.backend) * 2]
    for number in numbers:
        vm.qmp.answer(number, 'a flush')


def resize_one(vm: Machine, second: Second) -> None:
    """It is drained while the other goes on."""
    node = vm.chance.choice((vm.root(), second.node))
    for size in (DISK_MIB + 1, DISK_MIB):
        vm.cmd('block_resize', node_name=node, size=size * MIB)


EVENTS: List[Callable[[Machine, Second], None]] = [
    stop_both, reset_first, reset_second, drain_both, resize_one]


# ---- the devices' own limits

def limit(vm: Machine, backend: str, **limits) -> None:
    """A device joins the group, and sets its limits; or leaves it."""
    vm.cmd('block_set_io_throttle', {
        'id': backend, **dict.fromkeys(LIMITS, 0), **limits,
        **({'group': GROUP} if limits else {})})


def replug_first(vm: Machine, _second: Second) -> None:
    """One disk is unplugged while both wait; it joins again."""
    unplug(vm, vm.chance.random() < 0.5)
    plug(vm)
    limit(vm, BACKEND, iops=200)


def replug_second(vm: Machine, second: Second) -> None:
    """Or the other."""
    second.unplug()
    second.plug()
    limit(vm, second.backend, iops=200)


def group_devices(vm: Machine) -> None:
    """covers: D1, D2, D6, M6, M8: two disks in a group that is changed"""
    vm.clock(True)
    second = Second(vm)
    both(vm, second, 50)
    events = EVENTS + [replug_first, replug_second]
    vm.chance.shuffle(events)
    for event in events[:4]:
        for backend in (BACKEND, second.backend):
            limit(vm, backend, iops=vm.chance.choice((100, 500)),
                  bps=20 * MIB)
        both(vm, second, 10)
        event(vm, second)
        both(vm, second, 10)
        limit(vm, vm.chance.choice((BACKEND, second.backend)),
              iops_rd=100, iops_wr=vm.chance.choice((60, 3000)))
        both(vm, second, 10)
        for backend in vm.chance.sample((BACKEND, second.backend), 2):
            limit(vm, backend)
            both(vm, second, 20)
    second.remove()
    vm.clock(False)


# ---- filters

def limit_group(vm: Machine, group: str, iops: int) -> None:
    """Of all that are in it."""
    vm.cmd('qom-set', path=f'/objects/{group}', property='limits',
           value={'iops-total': iops, 'iops-total-max': 0})


def regroup(vm: Machine, second: Second) -> None:
    """A disk leaves the group for a slower or faster one, and returns."""
    other = vm.name('group')
    vm.cmd('object-add', {'qom-type': 'throttle-group'}, id=other,
           limits={'iops-total': vm.chance.choice((50, 5000))})
    second.join(other)
    both(vm, second, 10)
    second.join('group')
    both(vm, second, 10)
    vm.cmd('object-del', id=other)


def unplug_both(vm: Machine, second: Second) -> None:
    """Each in turn, with requests that wait in the filters."""
    second.unplug()
    second.plug()
    unplug(vm, vm.chance.random() < 0.5)
    plug(vm)


def group_filters(vm: Machine) -> None:
    """covers: D1, D2, D6, M6, M8: the same with filters, one changes group"""
    vm.clock(True)
    second = Second(vm, 'group')
    both(vm, second, 50)
    events = EVENTS + [regroup, unplug_both]
    vm.chance.shuffle(events)
    for event in events[:4]:
        limit_group(vm, 'group', vm.chance.choice((100, 500)))
        both(vm, second, 10)
        event(vm, second)
        both(vm, second, 10)
        limit_group(vm, 'group', vm.chance.choice((60, 5000)))
        both(vm, second, 10)
        limit_group(vm, 'group', 0)
        both(vm, second, 50)
    second.remove()
    vm.clock(False)


SCENARIOS = (
    Scenario('group-devices', group_devices),
    Scenario('group-filters', group_filters, throttled=True),
)
