# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What is done to guest memory while the requests of a disk use it.

See scenarios.py for what holds for all scenarios.
"""

import os

from machine import MIB, Machine, wait_until
from scenarios import Scenario

# ---- DIMMs

DIMM_MIB = 128
DIMM_ADDR = 0x100000000

#: the memory hot plug registers of the i440FX machine
MEMHP_SELECT = 0xa00
MEMHP_CONTROL = 0xa14
MEMHP_EJECT = 8


def plug_dimm(vm: Machine) -> str:
    """A DIMM that the driver can use; returns its name."""
    name = vm.name('dimm')
    path = vm.path(name)
    vm.cmd('object-add', {'qom-type': 'memory-backend-file'}, id=name + '-ram',
           size=DIMM_MIB * MIB, mem_path=path, share=True)
    vm.cmd('device_add', driver='pc-dimm', id=name, memdev=name + '-ram')
    info = [entry['data'] for entry in vm.cmd('query-memory-devices')
            if entry['data']['id'] == name][0]
    vm.driver.cmd('add-memory', info['addr'], info['size'], path, 0)
    return name


def unplug_dimm(vm: Machine, name: str) -> None:
    """The guest lets it go, whether it uses it or not."""
    vm.qmp.forget_events()
    vm.cmd('device_del', id=name)
    vm.driver.cmd('out', MEMHP_SELECT, 0, 4)
    vm.driver.cmd('out', MEMHP_CONTROL, MEMHP_EJECT, 1)
    vm.qmp.event('DEVICE_DELETED', device=name)
    vm.cmd('object-del', id=name + '-ram')


def forget_dimm(vm: Machine, name: str) -> None:
    """The driver does not use it any more."""
    vm.driver.cmd('use-memory', 'none')
    vm.driver.cmd('drop-memory')
    os.unlink(vm.path(name))


def elsewhere(vm: Machine, requests: int = 100) -> None:
    """Waits until so many more requests had their data in added memory."""
    before = vm.driver.stats()['elsewhere']
    wait_until('requests in added memory', lambda:
               vm.driver.stats()['elsewhere'] >= before + requests)


def dimm(vm: Machine) -> None:
    """covers: G11: a DIMM is plugged, used, and unplugged when out of use"""
    for _ in range(3):
        name = plug_dimm(vm)
        vm.driver.cmd('use-memory', 'careful')
        elsewhere(vm)
        vm.driver.cmd('use-memory', 'none')
        unplug_dimm(vm, name)
        forget_dimm(vm, name)
        vm.progress(50)


def dimm_in_use(vm: Machine) -> None:
    """covers: G11: a DIMM goes while requests write to it; a reset helps"""
    for _ in range(2):
        name = plug_dimm(vm)
        vm.driver.cmd('use-memory', 'rude')
        elsewhere(vm)
        unplug_dimm(vm, name)
        wait_until('the device to need a reset', lambda:
                   vm.driver.cmd('broken') == 'yes')
        vm.driver.cmd('leave')
        forget_dimm(vm, name)
        vm.driver.cmd('reset')
        vm.resume()


SCENARIOS = (
    Scenario('dimm', dimm),
    Scenario('dimm-in-use', dimm_in_use),
)
