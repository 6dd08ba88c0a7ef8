# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A guest that does as it is told: a small virtio-blk driver on a qtest socket.

Knows the transports, split and packed rings, and requests. It works the rings
in the guest's memory, which it shares with QEMU; each batch is waited for, so
that the same calls do the same at any time.
"""

import mmap
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from machine import GUARD, Hang, SoakError
from session import LineReader

MEMORY = 32 << 20
HEAP = 1 << 20
ARENA = 6 << 20
#: of a ring, unless the transport fixes it
RING_SIZE = 64
#: of which the driver makes use
MAX_QUEUES = 4

F_RING_PACKED = 34
F_NOTIFICATION_DATA = 38
F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 9, 13, 14

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13

#: device status
DRIVER_OK = 15
NEEDS_RESET = 64

CONFIG_SIZE = 60


class Qtest:
    """QEMU's qtest socket, and the guest's memory."""

    def __init__(self, path: str, memory: int):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = LineReader(self._socket)  # type: ignore[arg-type]
        self.memory = mmap.mmap(memory, MEMORY)

    def close(self) -> None:
        """Leaves QEMU running."""
        self._reader.close()
        self._socket.close()
        self.memory.close()

    def ask(self, *words) -> str:
        """A command, whose answer is "OK" and what this returns."""
        line = ' '.join(hex(word) if isinstance(word, int) else word
                        for word in words)
        try:
            self._socket.sendall(line.encode() + b'\n')
            while True:
                answer = self._reader.line(GUARD)
                if answer is None:
                    raise SoakError('QEMU closed its qtest socket')
                if not answer.startswith('IRQ'):
                    break
        except TimeoutError:
            raise Hang(f'qtest did not answer to "{line}"') from None
        except OSError as error:
            raise SoakError(f'QEMU closed its qtest socket: {error}') from None
        status, _, rest = answer.partition(' ')
        if status != 'OK':
            raise SoakError(f'qtest answers "{answer}" to "{line}"')
        return rest

    def get(self, kind: str, address: int) -> int:
        """readb, inl, ..."""
        return int(self.ask(kind, address), 0)


class Arena:
    """The part of the guest's memory that a disk's driver uses."""

    def __init__(self, qtest: Qtest, number: int):
        self.memory = qtest.memory
        self._base = self._heap = HEAP + number * ARENA

    def alloc(self, size: int, align: int = 16) -> int:
        """Zeroed memory, until it is forgotten."""
        start = self._heap = -(-self._heap // align) * align
        self._heap += size
        if self._heap > self._base + ARENA:
            raise SoakError('the driver has no memory left')
        self.memory[start:start + size] = bytes(size)
        return start

    def mark(self) -> int:
        """For forget()."""
        return self._heap

    def forget(self, mark: Optional[int] = None) -> None:
        """All memory is free again, or what came after the mark."""
        self._heap = self._base if mark is None else mark

    def pack(self, form: str, address: int, *values: int) -> None:
        """
        Writes to memory, which a device looks at meanwhile: pack_into() would
        fill a field with zeroes first.
        """
        packed = struct.pack('<' + form, *values)
        self.memory[address:address + len(packed)] = packed

    def unpack(self, form: str, address: int) -> Tuple[int, ...]:
        """Reads from memory."""
        return struct.unpack_from('<' + form, self.memory, address)


#
# Transports
#

class Pci:
    """A function on a PC's PCI bus."""

    #: where BARs go, by slot
    WINDOW, STEP, IO = 0xe0000000, 0x02000000, 0xc000

    def __init__(self, qtest: Qtest, slot: int, bus: int = 0):
        self.qtest = qtest
        self._address = 0x80000000 | bus << 16 | slot << 11
        self._slot = slot + 8 * bus
        self.bars: Dict[int, int] = {}

    def read(self, offset: int) -> int:
        """32 bits of configuration space."""
        self.qtest.ask('outl', 0xcf8, self._address | offset & ~3)
        return self.qtest.get('inl', 0xcfc)

    def write(self, offset: int, value: int) -> None:
        """32 bits."""
        self.qtest.ask('outl', 0xcf8, self._address | offset & ~3)
        self.qtest.ask('outl', 0xcfc, value & 0xffffffff)

    def byte(self, offset: int) -> int:
        """8 bits."""
        return self.read(offset) >> offset % 4 * 8 & 0xff

    def space(self) -> List[int]:
        """What lspci -x shows."""
        return [self.read(offset) for offset in range(0, 256, 4)]

    def bridge(self, bus: int) -> None:
        """It is a bridge: open it."""
        self.write(0x18, bus << 16 | bus << 8)
        self.write(0x20, 0xeff0e000)
        self.write(0x1c, 0xf0c0)
        self.write(0x04, 7)

    def map(self) -> None:
        """Gives each BAR an address."""
        place = self.WINDOW + self._slot % 8 * self.STEP
        bar = 0
        while bar < 6:
            offset = 0x10 + 4 * bar
            self.write(offset, 0xffffffff)
            kind = self.read(offset)
            if kind & 1:
                self.bars[bar] = self.IO + self._slot * 0x100
                self.write(offset, self.bars[bar])
            elif kind:
                size = 0x100000000 - (kind & ~15)
                self.bars[bar] = -(-place // size) * size
                place = self.bars[bar] + size
                self.write(offset, self.bars[bar])
                if kind & 4:
                    bar += 1
                    self.write(0x10 + 4 * bar, 0)
            bar += 1
        self.write(0x04, 7)

    def is_io(self, bar: int) -> bool:
        """Whether a BAR is in the space of I/O ports."""
        return bool(self.read(0x10 + 4 * bar) & 1)


class ModernPci:
    """4.1 of the specification."""

    modern = True

    def __init__(self, pci: Pci):
        self._pci = pci
        self.qtest = pci.qtest
        self._caps: Dict[int, int] = {}
        self._multiplier = 0
        cap = pci.byte(0x34)
        while cap:
            if pci.byte(cap) == 9 and pci.byte(cap + 3) in (1, 2, 3, 4):
                bar, kind = pci.byte(cap + 4), pci.byte(cap + 3)
                if not pci.is_io(bar):
                    self._caps[kind] = pci.bars[bar] + pci.read(cap + 8)
                    if kind == 2:
                        self._multiplier = pci.read(cap + 16)
            cap = pci.byte(cap + 1)

    def get(self, kind: str, offset: int) -> int:
        """Of the common configuration."""
        return self.qtest.get('read' + kind, self._caps[1] + offset)

    def set(self, kind: str, offset: int, value: int) -> None:
        """Of the common configuration."""
        self.qtest.ask('write' + kind, self._caps[1] + offset, value)

    def status(self, value: Optional[int] = None) -> int:
        """Reads or writes the device status."""
        if value is not None:
            self.set('b', 0x14, value)
        return self.get('b', 0x14)

    def features(self) -> int:
        """Those that are offered."""
        words = []
        for i in range(2):
            self.set('l', 0, i)
            words.append(self.get('l', 4))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> None:
        """Some of them."""
        for i in range(2):
            self.set('l', 8, i)
            self.set('l', 12, features >> 32 * i & 0xffffffff)

    def num_queues(self) -> int:
        """How many there are."""
        return self.get('w', 0x12)

    def queue_size(self, queue: int) -> int:
        """The largest."""
        self.set('w', 0x16, queue)
        return self.get('w', 0x18)

    def enable(self, queue: int, size: int,
               areas: Tuple[int, int, int]) -> int:
        """Returns where it is to be notified."""
        self.set('w', 0x16, queue)
        self.set('w', 0x18, size)
        for i, area in enumerate(areas):
            self.set('l', 0x20 + 8 * i, area)
            self.set('l', 0x24 + 8 * i, 0)
        self.set('w', 0x1c, 1)
        return self._caps[2] + self.get('w', 0x1e) * self._multiplier

    def notify(self, where: int, queue: int) -> None:
        """A kick."""
        self.qtest.ask('writew', where, queue)

    def isr(self) -> int:
        """Reads and clears it."""
        return self.qtest.get('readb', self._caps[3])

    def config(self) -> List[int]:
        """All of the device configuration."""
        return [self.qtest.get('readb', self._caps[4] + i)
                for i in range(CONFIG_SIZE)]

    def set_config(self, offset: int, value: int) -> None:
        """One byte."""
        self.qtest.ask('writeb', self._caps[4] + offset, value)


class Uncounted:
    """A transport that does not say how many queues there are."""

    def queue_size(self, queue: int) -> int:
        """The largest, or 0 where no such queue is."""
        raise NotImplementedError

    def num_queues(self) -> int:
        """How many there are."""
        queue = 0
        while self.queue_size(queue):
            queue += 1
        return queue


class LegacyPci(Uncounted):
    """4.1.4.10: the driver is an old one."""

    modern = False

    def __init__(self, pci: Pci):
        self.qtest = pci.qtest
        self._base = pci.bars[0]

    def status(self, value: Optional[int] = None) -> int:
        """Reads or writes the device status."""
        if value is not None:
            self.qtest.ask('outb', self._base + 18, value)
        return self.qtest.get('inb', self._base + 18)

    def features(self) -> int:
        """Those that are offered."""
        return self.qtest.get('inl', self._base)

    def accept(self, features: int) -> None:
        """Some of them."""
        self.qtest.ask('outl', self._base + 4, features & 0xffffffff)

    def queue_size(self, queue: int) -> int:
        """The only one."""
        self.qtest.ask('outw', self._base + 14, queue)
        return self.qtest.get('inw', self._base + 12)

    def enable(self, queue: int, _size: int,
               areas: Tuple[int, int, int]) -> int:
        """Returns where it is to be notified."""
        self.qtest.ask('outw', self._base + 14, queue)
        self.qtest.ask('outl', self._base + 8, areas[0] >> 12)
        return self._base + 16

    def notify(self, where: int, queue: int) -> None:
        """A kick."""
        self.qtest.ask('outw', where, queue)

    def isr(self) -> int:
        """Reads and clears it."""
        return self.qtest.get('inb', self._base + 19)

    def config(self) -> List[int]:
        """All of the device configuration."""
        return [self.qtest.get('inb', self._base + 20 + i)
                for i in range(CONFIG_SIZE)]

    def set_config(self, offset: int, value: int) -> None:
        """One byte."""
        self.qtest.ask('outb', self._base + 20 + offset, value)


class Mmio(Uncounted):
    """4.2, on a microvm."""

    modern = True

    def __init__(self, qtest: Qtest, base: int):
        self.qtest = qtest
        self._base = base

    def get(self, offset: int) -> int:
        """A register."""
        return self.qtest.get('readl', self._base + offset)

    def set(self, offset: int, value: int) -> None:
        """A register."""
        self.qtest.ask('writel', self._base + offset, value)

    def status(self, value: Optional[int] = None) -> int:
        """Reads or writes the device status."""
        if value is not None:
            self.set(0x70, value)
        return self.get(0x70)

    def features(self) -> int:
        """Those that are offered."""
        words = []
        for i in range(2):
            self.set(0x14, i)
            words.append(self.get(0x10))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> None:
        """Some of them."""
        for i in range(2):
            self.set(0x24, i)
            self.set(0x20, features >> 32 * i & 0xffffffff)

    def queue_size(self, queue: int) -> int:
        """The largest."""
        self.set(0x30, queue)
        return self.get(0x34)

    def enable(self, queue: int, size: int,
               areas: Tuple[int, int, int]) -> int:
        """Returns where it is to be notified."""
        self.set(0x30, queue)
        self.set(0x38, size)
        for offset, area in zip((0x80, 0x90, 0xa0), areas):
            self.set(offset, area)
            self.set(offset + 4, 0)
        self.set(0x44, 1)
        return self._base + 0x50

    def notify(self, where: int, queue: int) -> None:
        """A kick."""
        self.qtest.ask('writel', where, queue)

    def isr(self) -> int:
        """Reads and clears it."""
        value = self.get(0x60)
        self.set(0x64, value)
        return value

    def config(self) -> List[int]:
        """All of the device configuration."""
        return [self.qtest.get('readb', self._base + 0x100 + i)
                for i in range(CONFIG_SIZE)]

    def set_config(self, offset: int, value: int) -> None:
        """One byte."""
        self.qtest.ask('writeb', self._base + 0x100 + offset, value)


#
# Rings
#

#: address, length, whether the device writes to it
Buffer = Tuple[int, int, bool]
#: how many of them a request has at most
CHAIN = 3


class SplitRing:
    """2.7 of the specification."""

    def __init__(self, arena: Arena, size: int):
        self._arena = arena
        self.size = size
        self._desc = self._arena.alloc(16 * size, 4096)
        self._avail = self._arena.alloc(6 + 2 * size, 2)
        self._used = self._arena.alloc(6 + 8 * size, 4096)
        self.areas = (self._desc, self._avail, self._used)
        self._index = 0

    def add(self, chains: List[List[Buffer]]) -> None:
        """Makes chains available, all at once."""
        free = 0
        for i, chain in enumerate(chains):
            slot = (self._index + i) % self.size
            self._arena.pack('H', self._avail + 4 + 2 * slot, free)
            for left, (address, length, write) in zip(
                    range(len(chain) - 1, -1, -1), chain):
                self._arena.pack('QIHH', self._desc + 16 * free, address,
                                 length, (left > 0) | write << 1, free + 1)
                free += 1
        if free > self.size:
            raise SoakError('the batch is larger than the ring')
        # used_event: a notification when the first has been used
        self._arena.pack('H', self._avail + 4 + 2 * self.size, self._index)
        self._index = (self._index + len(chains)) & 0xffff
        self._arena.pack('H', self._avail + 2, self._index)

    def done(self, number: int) -> Optional[List[int]]:
        """Lengths, in the order of the chains, when all are used."""
        if self._arena.unpack('H', self._used + 2)[0] != self._index:
            return None
        lengths = {}
        for i in range(number):
            slot = (self._index - number + i) % self.size
            head, length = self._arena.unpack('II', self._used + 4 + 8 * slot)
            lengths[head] = length
        return [lengths[head] for head in sorted(lengths)]


class PackedRing:
    """2.8 of the specification."""

    def __init__(self, arena: Arena, size: int):
        self._arena = arena
        self.size = size
        self._desc = self._arena.alloc(16 * size, 4096)
        self.areas = (self._desc, self._arena.alloc(4), self._arena.alloc(4))
        self._next = 0
        self._wrap = True
        self._used = 0
        self._used_wrap = True
        self._chains: List[int] = []
        self._lengths: Dict[int, int] = {}

    def add(self, chains: List[List[Buffer]]) -> None:
        """Makes chains available, all at once."""
        begin = None
        self._chains = [len(chain) for chain in chains]
        self._lengths = {}
        for number, chain in enumerate(chains):
            for i, (address, length, write) in enumerate(chain):
                flags = ((i < len(chain) - 1) | write << 1
                         | self._wrap << 7 | (not self._wrap) << 15)
                where = self._desc + 16 * self._next
                self._arena.pack('QIH', where, address, length, number)
                if begin is None:
                    begin = (where, flags)
                else:
                    self._arena.pack('H', where + 14, flags)
                self._next += 1
                if self._next == self.size:
                    self._next = 0
                    self._wrap = not self._wrap
        if begin:
            self._arena.pack('H', begin[0] + 14, begin[1])

    def done(self, number: int) -> Optional[List[int]]:
        """Lengths, in the order of the chains, when all are used."""
        while len(self._lengths) < number:
            where = self._desc + 16 * self._used
            flags, = self._arena.unpack('H', where + 14)
            if not (bool(flags & 0x80) == bool(flags & 0x8000)
                    == self._used_wrap):
                return None
            # Only now: the flags say that the rest has been written (2.8.22).
            length, chain = self._arena.unpack('IH', where + 8)
            self._lengths[chain] = length
            self._used += self._chains[chain]
            if self._used >= self.size:
                self._used -= self.size
                self._used_wrap = not self._used_wrap
        return [self._lengths[chain] for chain in range(number)]


#
# The disk
#

@dataclass
class Request:
    """One request; size: of what the device writes."""
    kind: int
    sector: int = 0
    data: bytes = b''
    size: int = 0


@dataclass
class Queue:
    """One queue in use."""
    ring: object
    where: int


class Disk:
    """The driver of one disk."""

    def __init__(self, transport, number: int = 0):
        self._transport = transport
        self._qtest = transport.qtest
        self._arena = Arena(transport.qtest, number)
        self._mark = 0
        self._queues: List[Queue] = []
        self.features = 0

    def look(self) -> dict:
        """What a driver can see."""
        return {'status': self._transport.status(),
                'config': self._transport.config()}

    def offer(self) -> dict:
        """What a reset device offers."""
        self._transport.status(0)
        self._transport.status(3)
        return {'features': hex(self._transport.features()),
                'sizes': [self._transport.queue_size(i) for i in
                          range(self._transport.num_queues())]}

    def start(self, packed: bool = False, without: int = 0) -> None:
        """Resets it, enables some queues."""
        self.reset()
        self._arena.forget()
        self._transport.status(3)
        self.features = self._transport.features() & ~without
        self.features &= ~(1 << F_NOTIFICATION_DATA)
        if not packed:
            self.features &= ~(1 << F_RING_PACKED)
        self._transport.accept(self.features)
        if self._transport.modern:
            self._transport.status(11)
        kind = PackedRing if self.has(F_RING_PACKED) else SplitRing
        for i in range(min(self._transport.num_queues(), MAX_QUEUES)):
            size = self._transport.queue_size(i)
            if self._transport.modern:
                size = min(size, RING_SIZE)
            ring = kind(self._arena, size)
            self._queues.append(Queue(
                ring, self._transport.enable(i, size, ring.areas)))
        self._mark = self._arena.mark()
        self._transport.status(DRIVER_OK if self._transport.modern else 7)

    def reset(self) -> None:
        """Also ends what is in flight."""
        self._transport.status(0)
        self._queues = []

    def move(self, qtest: Qtest) -> None:
        """The guest has gone to another QEMU, with its memory."""
        self._qtest = self._transport.qtest = qtest
        self._arena.memory = qtest.memory

    def has(self, feature: int) -> bool:
        """Whether it has been negotiated."""
        return bool(self.features >> feature & 1)

    def queues(self) -> int:
        """How many are in use."""
        return len(self._queues)

    def set_config(self, offset: int, value: int) -> None:
        """One byte of the configuration."""
        self._transport.set_config(offset, value)

    def begin(self, requests: List[Request], queue: int = 0) -> List[tuple]:
        """Makes them available, and kicks."""
        chains, places = [], []
        for request in requests:
            head = self._arena.alloc(16)
            self._arena.pack('IIQ', head, request.kind, 0, request.sector)
            chain: List[Buffer] = [(head, 16, False)]
            data = self._arena.alloc(len(request.data) or request.size or 1)
            if request.data:
                self._arena.memory[data:data + len(request.data)] = \
                    request.data
                chain.append((data, len(request.data), False))
            elif request.size:
                chain.append((data, request.size, True))
            status = self._arena.alloc(1)
            self._arena.pack('B', status, 0xff)
            chain.append((status, 1, True))
            chains.append(chain)
            places.append((data, request.size, status))
        self._queues[queue].ring.add(chains)
        self._transport.notify(self._queues[queue].where, queue)
        return places

    def end(self, places: List[tuple], queue: int = 0) -> List[tuple]:
        """
        Waits for them: status, used length, data for each.

        The length of a request that failed is None: the plane says how much
        was written, and QEMU's own path does not (2.7.8.2).
        """
        lengths = self._wait(queue, len(places))
        if lengths is None:
            return [('needs reset',)]
        answers = []
        for length, (data, size, status) in zip(lengths, places):
            result = self._arena.unpack('B', status)[0]
            answers.append((result, None if result else length,
                            bytes(self._arena.memory[data:data + size])))
        return answers

    def answered(self, places: List[tuple], queue: int = 0) -> bool:
        """Whether all have been completed."""
        return self._queues[queue].ring.done(len(places)) is not None

    def run(self, requests: List[Request], queue: int = 0) -> List[tuple]:
        """Both, while no other is in flight; as many at once as fit."""
        answers: List[tuple] = []
        fit = max(self._queues[queue].ring.size // CHAIN, 1)
        for i in range(0, len(requests), fit):
            self._arena.forget(self._mark)
            batch = requests[i:i + fit]
            answers += self.end(self.begin(batch, queue), queue)
            if answers[-1] == ('needs reset',):
                break
        return answers

    def _wait(self, queue: int, number: int) -> Optional[List[int]]:
        ring = self._queues[queue].ring
        begin = time.monotonic()
        step = begin + 0.02
        notified = False
        while True:
            lengths = ring.done(number)
            notified = notified or (lengths is not None
                                    and bool(self._transport.isr() & 1))
            if notified:
                return lengths
            now = time.monotonic()
            if now > step:
                # The guest's time, for throttles and timers of drivers
                self._qtest.ask('clock_step', 100_000_000)
                if self._transport.status() & NEEDS_RESET:
                    return None
                step = now + 0.02
            if now > begin + GUARD:
                raise Hang('a request was not completed' if lengths is None
                           else 'the guest was not notified')
            os.sched_yield()
