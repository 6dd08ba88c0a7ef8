# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What is done to guest memory while the requests of a disk use it.

See scenarios.py for what holds for all scenarios.
"""

import json
import os
from typing import List, Tuple

from machine import EJECT, MIB, Machine, SoakError, wait_until
from scenarios import Scenario

PAGE = 4096
#: PCI slots
MEM_SLOT = 6
BALLOON_SLOT = 7


def device_gone(vm: Machine, name: str, slot: int) -> None:
    """The guest lets a PCI device go."""
    vm.qmp.forget_events()
    vm.cmd('device_del', id=name)
    vm.driver.cmd('out', EJECT, 1 << slot, 4)
    vm.qmp.event('DEVICE_DELETED', device=name)


def expect_zeroes(vm: Machine, start: int, size: int, pages: int) -> None:
    """So many pages of a range of added memory are zero, and no others."""
    found = int(vm.driver.cmd('zero-pages', start, size))
    if found != pages:
        raise SoakError(f'{found} pages of {size // PAGE} are zero, not '
                        f'{pages}: what QEMU should have discarded is there, '
                        'or what it should not is gone')


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


# ---- virtio-mem

class VirtioMem:
    """
    A virtio-mem device with its driver.

    blocks: how many it could give
    dynamic: memory appears in the guest's address space when it is plugged
    """

    SIZE = 64 * MIB

    def __init__(self, vm: Machine):
        self._vm = vm
        self._name = vm.name('mem')
        self._path = vm.path(self._name)
        self.block = self._address = self._plugged = 0
        self.dynamic = vm.chance.random() < 0.5
        vm.cmd('object-add', {'qom-type': 'memory-backend-file'},
               id=self._name + '-ram', size=self.SIZE, mem_path=self._path,
               share=True)
        vm.cmd('device_add', driver='virtio-mem-pci', id=self._name,
               addr=f'{MEM_SLOT:x}', memdev=self._name + '-ram',
               dynamic_memslots=self.dynamic,
               prealloc=vm.chance.random() < 0.5)
        self.start()
        self.blocks = self.SIZE // self.block

    def _config(self) -> dict:
        return json.loads(self._vm.driver.cmd('mem-config'))

    def _expect(self, field: str, blocks: int) -> None:
        found = self._config()[field]
        if found != blocks * self.block:
            raise SoakError(f'virtio-mem has {found} bytes {field}, not '
                            f'{blocks} blocks of {self.block}')

    def start(self) -> None:
        """The driver comes, at first or after a reset of all."""
        self._vm.driver.cmd('mem-start')
        config = self._config()
        self.block = config['block']
        self._address = config['address']
        self._plugged = 0
        self._expect('plugged', 0)

    def request(self, blocks: int) -> None:
        """QEMU wishes that so many blocks be plugged."""
        self._vm.cmd('qom-set', path=self._name, property='requested-size',
                     value=blocks * self.block)
        self._expect('requested', blocks)

    def ask(self, what: str, first: int, count: int, answer: str) -> None:
        """A request, and the answer to it."""
        found = self._vm.driver.cmd(
            'mem-ask', what, self._address + first * self.block, count)
        if found != answer:
            raise SoakError(f'virtio-mem says "{found}" to "{what} {count} '
                            f'from {first} on", not "{answer}"')

    def _move(self, what: str, first: int, count: int) -> None:
        while count:
            part = self._vm.chance.randint(1, count)
            self.ask(what, first, part, 'ack')
            self._plugged += part if what == 'plug' else -part
            first += part
            count -= part
        self._expect('plugged', self._plugged)

    def plug(self, first: int, count: int) -> None:
        """In some requests."""
        self._move('plug', first, count)
        self.ask('state', first, count, 'plugged')

    def unplug(self, first: int, count: int) -> None:
        """The pair of plug()."""
        self._move('unplug', first, count)
        self.ask('state', first, count, 'unplugged')

    def unplug_all(self) -> None:
        """All of it at once."""
        self.request(0)
        self.ask('unplug-all', 0, 0, 'ack')
        self._plugged = 0
        self._expect('plugged', 0)

    def add(self, first: int, count: int) -> None:
        """The load may use these blocks."""
        self._vm.driver.cmd('add-memory', self._address + first * self.block,
                            count * self.block, self._path, first * self.block)

    def expect_gone(self, first: int, count: int, gone: int) -> None:
        """Of blocks that were added, counted from the first, so many are."""
        expect_zeroes(self._vm, first * self.block, count * self.block,
                      gone * self.block // PAGE)

    def remove(self) -> None:
        """All of it is unplugged."""
        self.request(0)
        device_gone(self._vm, self._name, MEM_SLOT)
        # RCU may still hold it for a while.
        self._vm.cmd_when_free('object-del', id=self._name + '-ram')
        os.unlink(self._path)


def virtio_mem(vm: Machine) -> None:
    """covers: G11: virtio-mem gives memory, which is used, and takes it"""
    mem = VirtioMem(vm)
    for _ in range(4):
        count = vm.chance.randint(4, mem.blocks // 2)
        first = vm.chance.randrange(mem.blocks - count - 1)
        other = first + count
        mem.request(count)
        mem.plug(first, count)
        mem.ask('plug', other, 1, 'nack')
        mem.add(first, count)
        vm.driver.cmd('use-memory', 'careful')
        elsewhere(vm)
        mem.request(count + 1)
        mem.plug(other, 1)
        elsewhere(vm, 20)
        mem.unplug(other, 1)
        elsewhere(vm, 20)
        vm.driver.cmd('use-memory', 'none')
        vm.driver.cmd('fill-memory', 0, count * mem.block)
        part = vm.chance.randrange(1, count)
        mem.unplug(first, part)
        mem.expect_gone(0, part, part)
        mem.expect_gone(part, count - part, 0)
        vm.progress(50)
        mem.unplug_all()
        mem.expect_gone(0, count, count)
        vm.driver.cmd('drop-memory')
    mem.remove()


def lost_memory(vm: Machine) -> None:
    """What requests were to be written to is gone: only a reset helps."""
    wait_until('the device to need a reset', lambda:
               vm.driver.cmd('broken') == 'yes')
    vm.driver.cmd('leave')
    vm.driver.cmd('use-memory', 'none')
    vm.driver.cmd('drop-memory')
    vm.driver.cmd('reset')
    vm.resume()


def plug_in_use(vm: Machine) -> VirtioMem:
    """Blocks come and go while requests write to them; some stay."""
    mem = VirtioMem(vm)
    count = mem.blocks // 2
    first = vm.chance.randrange(mem.blocks - count)
    mem.request(count)
    mem.plug(first, count)
    mem.add(first, count)
    vm.driver.cmd('use-memory', 'rude')
    elsewhere(vm)
    for _ in range(6):
        part = vm.chance.randrange(1, count)
        mem.unplug(first, part)
        elsewhere(vm, 20)
        mem.plug(first, part)
        elsewhere(vm, 20)
    return mem


def virtio_mem_in_use(vm: Machine) -> None:
    """covers: G11: virtio-mem goes in blocks while requests write to it"""
    mem = plug_in_use(vm)
    mem.unplug_all()
    if mem.dynamic:
        lost_memory(vm)
        mem.remove()
    else:
        # Not the guest's any more, but still there.
        elsewhere(vm)
        mem.remove()
        lost_memory(vm)


def virtio_mem_reset(vm: Machine) -> None:
    """covers: G11, M8: a reset of all unplugs virtio-mem that is in use"""
    mem = plug_in_use(vm)
    vm.driver.cmd('pause')
    vm.qmp.forget_events()
    vm.cmd('system_reset')
    vm.qmp.event('RESET')
    vm.driver.cmd('lost')
    vm.driver.cmd('use-memory', 'none')
    vm.driver.cmd('drop-memory')
    vm.driver.cmd('start')
    mem.start()
    vm.resume()
    mem.remove()


# ---- the balloon

class Balloon:
    """
    A virtio-balloon device with its driver.

    It works on memory of the guest's own that nothing else uses, two halves
    of it: one for the load, the other for the balloon, or both for both.

    half: bytes of either
    """

    #: pages of one request
    MAX_PAGES = 64

    def __init__(self, vm: Machine):
        self._vm = vm
        self._name = vm.name('balloon')
        vm.cmd('device_add', driver='virtio-balloon-pci', id=self._name,
               addr=f'{BALLOON_SLOT:x}', free_page_reporting=True)
        vm.driver.cmd('balloon-start')
        self._base, size = json.loads(vm.driver.cmd('own-memory'))
        self.half = size // 2
        self._ram = vm.cmd('query-balloon')['actual']
        self._pages = 0

    def add(self, half: int) -> None:
        """The load may use this half."""
        self._vm.driver.cmd('add-own', self._base + half * self.half,
                            self.half)

    def runs(self) -> List[Tuple[int, int]]:
        """Runs of pages of a half, with others between them."""
        result = []
        page = 0
        while True:
            page += self._vm.chance.randint(1, self.MAX_PAGES)
            count = self._vm.chance.randint(1, self.MAX_PAGES)
            if page + count > self.half // PAGE:
                return result
            result.append((page, count))
            page += count

    def want(self, pages: int) -> None:
        """QEMU asks for so many pages, and the guest sees it."""
        self._vm.cmd('balloon', value=self._ram - pages * PAGE)
        found = int(self._vm.driver.cmd('balloon-wanted'))
        if found != pages:
            raise SoakError(f'the balloon wants {found} pages, not {pages}')

    def move(self, what: str, half: int, runs: List[Tuple[int, int]]) -> None:
        """Inflates, deflates, or reports pages of a half, in any order."""
        for page, count in self._vm.chance.sample(runs, len(runs)):
            self._vm.driver.cmd(what, self._base + half * self.half
                                + page * PAGE, count)
            if what != 'report':
                self._pages += count if what == 'inflate' else -count

    def tell(self) -> None:
        """The guest tells QEMU how many there are."""
        self._vm.driver.cmd('balloon-actual', self._pages)
        found = self._vm.cmd('query-balloon')['actual']
        if found != self._ram - self._pages * PAGE:
            raise SoakError(f'QEMU says that the guest has {found} bytes, of '
                            f'{self._ram} with {self._pages} pages less')

    def remove(self) -> None:
        """There is nothing in it."""
        device_gone(self._vm, self._name, BALLOON_SLOT)


def pages_of(runs: List[Tuple[int, int]]) -> int:
    """All together."""
    return sum(count for _, count in runs)


def balloon(vm: Machine) -> None:
    """covers: G11: pages that were used go into the balloon and come back"""
    device = Balloon(vm)
    for turn in range(6):
        half = turn % 2
        device.add(half)
        vm.driver.cmd('fill-memory', 0, device.half)
        vm.driver.cmd('use-memory', 'careful')
        elsewhere(vm)
        vm.driver.cmd('use-memory', 'none')
        vm.driver.cmd('fill-memory', 0, device.half)
        # The load goes on in the other half, page by page beside this one.
        device.add(1 - half)
        vm.driver.cmd('use-memory', 'careful')
        runs = device.runs()
        device.want(pages_of(runs))
        device.move('inflate', half, runs)
        device.tell()
        elsewhere(vm)
        vm.driver.cmd('use-memory', 'none')
        device.add(half)
        expect_zeroes(vm, 0, device.half, pages_of(runs))
        device.want(0)
        device.move('deflate', half, runs)
        device.tell()
        vm.driver.cmd('fill-memory', 0, device.half)
        runs = device.runs()
        device.move('report', half, runs)
        expect_zeroes(vm, 0, device.half, pages_of(runs))
    vm.driver.cmd('drop-memory')
    device.remove()


def balloon_in_use(vm: Machine) -> None:
    """covers: G11: pages go into the balloon while requests write to them"""
    device = Balloon(vm)
    device.add(0)
    vm.driver.cmd('use-memory', 'rude')
    elsewhere(vm)
    for _ in range(6):
        runs = device.runs()
        device.want(pages_of(runs))
        device.move('inflate', 0, runs)
        device.tell()
        elsewhere(vm, 20)
        device.move('report', 0, device.runs())
        device.move('deflate', 0, runs)
        device.want(0)
        device.tell()
        elsewhere(vm, 20)
    vm.driver.cmd('use-memory', 'none')
    vm.driver.cmd('use-memory', 'careful')
    elsewhere(vm)
    vm.driver.cmd('use-memory', 'none')
    vm.driver.cmd('drop-memory')
    device.remove()


SCENARIOS = (
    Scenario('dimm', dimm),
    Scenario('dimm-in-use', dimm_in_use),
    Scenario('virtio-mem', virtio_mem),
    Scenario('virtio-mem-in-use', virtio_mem_in_use),
    Scenario('virtio-mem-reset', virtio_mem_reset),
    Scenario('balloon', balloon),
    Scenario('balloon-in-use', balloon_in_use),
)
