# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The cases of the migration test, in the table CASES at the end.

Each gets a Session, boots a guest with a disk, sends it from one QEMU process
to another, and lets the guest itself judge its data. How that is done stands
in machine.py; cases in which the disk has to go, too, stand in storage.py. The
ids in the descriptions are rows of the list of faults that data planes have had
elsewhere: M9 is migration, D11 a notification lost when the plane stops.
"""

import hashlib
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple

from machine import Disk, Machine, OWN_PATH, PLANE, STOCK, Server
from session import DISK_SIZE, MIB, Session, check_image
from storage import storage_and_back, storage_failures

# The requests that are made to fail, see start_read and start_writes.
READ_OFFSET = 2 * MIB
READ_SIZE = 4096
WRITES_OFFSET = 1 * MIB
WRITES_SIZE = 128 * 1024
READ_DATA = bytes(i * 7 % 251 for i in range(READ_SIZE))
SECTOR = 512

# Connections of a multifd migration, beside the first.
CHANNELS = 4


class Journey:
    """
    A guest with one disk, on its way from one process to the next.

    at: the process where it is
    channels: connections of each migration beside the first, or 0
    """

    def __init__(self, session: Session, serial: str, image: str,
                 server: Server, **more: Any) -> None:
        self.session = session
        self.disk = partial(Disk, serial, image)
        self.channels = 0
        self.at = session.boot(self.disk(server, **more))

    def target(self, server: Server = PLANE, **more: Any) -> Machine:
        """A process that waits for the guest."""
        target = self.session.incoming(self.disk(server, **more))
        if self.channels:
            target.multifd(self.channels)
        return target

    def move(self, server: Server = PLANE, **more: Any) -> None:
        """The guest goes to another process, and the one where it was ends."""
        target = self.target(server, **more)
        self.at.migrate_to(target)
        if self.channels:
            self.at.check_multifd()
        self.at.end()
        self.at = target


class Load(Journey):
    """Its disk is under verified load, which goes on wherever it arrives."""

    def __init__(self, session: Session, server: Server = PLANE) -> None:
        self.image = session.env.image("load.img", DISK_SIZE)
        super().__init__(session, "load", self.image, server)
        self.at.guest.run("start_load load")
        self.at.check_load("load")

    def move(self, server: Server = PLANE, **more: Any) -> None:
        super().move(server, **more)
        self.at.check_load("load")

    def begin(self, state: str, bandwidth: int = 1 << 30) -> Machine:
        """Begins a migration and waits for a state; returns its target."""
        target = self.target()
        self.at.capability("pause-before-switchover",
                           state == "pre-switchover")
        self.at.begin_migration(target, bandwidth)
        self.at.wait_migration(state)
        return target

    def stays(self) -> None:
        """Nothing came of a migration: the source is at work."""
        self.at.wait_state("running")
        self.at.check_load("load")
        self.at.capability("pause-before-switchover", False)

    def cancel(self) -> None:
        """Cancelled early, and past where the plane was stopped for it."""
        # While memory is copied: the bandwidth is so small that it cannot end.
        for state, bandwidth in (("active", MIB), ("pre-switchover", 1 << 30)):
            target = self.begin(state, bandwidth)
            if state == "active":
                self.at.check_load("load")
            self.at.cmd("migrate_cancel")
            self.at.wait_migration("cancelled")
            self.stays()
            target.kill()

    def end(self) -> None:
        """The load ends, and neither guest nor host finds fault with it."""
        self.at.guest.run("end_load")
        self.at.end()
        check_image(self.image)


# covers: M9, D11
def migrate_and_back(session: Session, here: Server, there: Server) -> None:
    """Under verified load, from one path to the other and back."""
    load = Load(session, here)
    load.move(there)
    load.move(here)
    load.end()


# covers: M9
def cancel(session: Session) -> None:
    """Every way to fail leaves the source at work; then one succeeds."""
    load = Load(session)
    load.cancel()
    # The destination dies when the source believes that it is done.
    load.begin("pre-switchover").kill()
    load.at.cmd("migrate-continue", state="pre-switchover")
    load.at.wait_migration("failed")
    load.stays()
    load.move()
    load.end()


# covers: M9
def multifd(session: Session) -> None:
    """Over several connections at once; cancelled ones, then one succeeds."""
    load = Load(session)
    load.channels = CHANNELS
    load.at.multifd(CHANNELS)
    load.cancel()
    load.move()
    load.end()


def failing(kind: str, offset: int, size: int,
            once: bool = False) -> List[Dict[str, Any]]:
    """Rules with which every 4 KiB request of a kind fails in a range."""
    return [{"event": "none", "iotype": kind, "errno": 5, "once": once,
             "sector": sector}
            for sector in range(offset // SECTOR, (offset + size) // SECTOR, 8)]


BAD_READ = failing("read", READ_OFFSET, READ_SIZE)


def parked_image(session: Session) -> str:
    """An image with something to read; returns its path."""
    image = session.env.image("parked.img", DISK_SIZE)
    with open(image, "r+b") as file:
        file.seek(READ_OFFSET)
        file.write(READ_DATA)
    return image


def read_sum() -> str:
    """Checksum of what parked_image() put there."""
    return hashlib.sha256(READ_DATA).hexdigest()


def park(machine: Machine, command: str) -> None:
    """Lets the guest submit what fails, until that has stopped the guest."""
    machine.guest.start(command)
    machine.event_wait("BLOCK_IO_ERROR", match={"data": {"action": "stop"}})
    machine.wait_state("io-error")


def resume(machine: Machine, command: str) -> None:
    """The parked requests complete where they have arrived."""
    machine.wait_state("io-error")
    machine.cmd("cont")
    machine.guest.run(command)
    machine.wait_state("running")
    machine.check_path("parked")


# covers: M9
def parked_requests(session: Session, here: Server, there: Server) -> None:
    """What werror=stop and rerror=stop parked travels and completes there."""
    guest = Journey(session, "parked", parked_image(session), here,
                    errors=BAD_READ)
    park(guest.at, "start_read parked")
    guest.move(there, errors=failing("write", WRITES_OFFSET, WRITES_SIZE))
    resume(guest.at, f"end_read {read_sum()}")
    park(guest.at, "start_writes parked")
    guest.move(here)
    resume(guest.at, "end_writes")
    guest.at.end()


# covers: M9, M11
def parked_packed(session: Session, here: Server, there: Server) -> None:
    """A parked request of a packed virtqueue travels, one way."""
    guest = Journey(session, "parked", parked_image(session), here,
                    errors=BAD_READ, packed=True)
    park(guest.at, "start_read parked")
    guest.move(there, packed=True)
    resume(guest.at, f"end_read {read_sum()}")
    guest.at.end()


# covers: M9
def parked_cancel(session: Session) -> None:
    """Parked requests complete at the source when the move was cancelled."""
    guest = Journey(session, "parked", parked_image(session), PLANE,
                    errors=failing("read", READ_OFFSET, READ_SIZE, once=True))
    source, target = guest.at, guest.target()
    park(source, "start_read parked")
    source.capability("pause-before-switchover", True)
    source.begin_migration(target)
    source.wait_migration("pre-switchover")
    source.cmd("migrate_cancel")
    source.wait_migration("cancelled")
    target.kill()
    resume(source, f"end_read {read_sum()}")
    source.end()


class Case(NamedTuple):
    """A row of the table: name, what it shows, and how."""
    name: str
    shows: str
    run: Callable[..., None]
    args: Dict[str, Server] = {}

    def needs(self, server: Server) -> bool:
        """Whether a disk of the case is served so."""
        return server in self.args.values()


CASES = [
    Case("load", "M9 D11: under load from plane to plane and back",
         migrate_and_back, {"here": PLANE, "there": PLANE}),
    Case("load-to-own", "M9: under load from plane to QEMU's path and back",
         migrate_and_back, {"here": PLANE, "there": OWN_PATH}),
    Case("load-from-own", "M9: under load from QEMU's path to plane and back",
         migrate_and_back, {"here": OWN_PATH, "there": PLANE}),
    Case("load-to-stock", "M9: under load from plane to Debian's and back",
         migrate_and_back, {"here": PLANE, "there": STOCK}),
    Case("load-from-stock", "M9: under load from Debian's to plane and back",
         migrate_and_back, {"here": STOCK, "there": PLANE}),
    Case("cancel", "M9: cancelled and failed migrations under load", cancel),
    Case("multifd", "M9: over several connections, under load, cancelled first",
         multifd),
    Case("storage", "M1 M9 M10: the disk goes, too, to another host and back",
         storage_and_back, {"here": PLANE, "there": PLANE}),
    Case("storage-to-own", "M1 M9 M10: with its disk from plane to QEMU's path",
         storage_and_back, {"here": PLANE, "there": OWN_PATH}),
    Case("storage-failures", "M1 M9 M10: with its disk, failed at each stage",
         storage_failures),
    Case("parked", "M9: parked requests travel from plane to plane and back",
         parked_requests, {"here": PLANE, "there": PLANE}),
    Case("parked-to-own", "M9: parked requests travel to QEMU's path and back",
         parked_requests, {"here": PLANE, "there": OWN_PATH}),
    Case("parked-from-own", "M9: parked requests travel from QEMU's path",
         parked_requests, {"here": OWN_PATH, "there": PLANE}),
    Case("parked-to-stock", "M9: parked requests travel to Debian's and back",
         parked_requests, {"here": PLANE, "there": STOCK}),
    Case("parked-from-stock", "M9: parked requests travel from Debian's",
         parked_requests, {"here": STOCK, "there": PLANE}),
    # The other way round it cannot be: Debian's QEMU does not understand what
    # it writes itself.
    Case("parked-packed", "M11: a packed ring's parked request from Debian's",
         parked_packed, {"here": STOCK, "there": OWN_PATH}),
    Case("parked-cancel", "M9: parked requests of a cancelled migration",
         parked_cancel),
]
