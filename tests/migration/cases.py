# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The cases of the migration test, in the table CASES at the end.

Each gets a Session, boots a guest with a disk, sends it from one QEMU process
to another, and lets the guest itself judge its data. How that is done stands
in machine.py; cases in which the disk has to go, too, stand in storage.py. The ids in the descriptions are rows of the list of faults that
data planes have had elsewhere: M9 is migration, D11 a notification lost when
the plane stops.
"""

import hashlib
from typing import Any, Callable, Dict, List, NamedTuple

from machine import Disk, Machine, OWN_PATH, PLANE, STOCK, Server
from session import DISK_SIZE, MIB, Session, check_image
from storage import storage_and_back, storage_failures

# The requests that are made to fail, see start_read and start_writes.
READ_OFFSET = 2 * MIB
READ_SIZE = 4096
WRITES_OFFSET = 1 * MIB
WRITES_SIZE = 128 * 1024
SECTOR = 512

# Connections of a multifd migration, beside the first.
CHANNELS = 4


# covers: M9, D11
def migrate_and_back(session: Session, here: Server, there: Server) -> None:
    """Under verified load, from one path to the other and back."""
    image = session.env.image("load.img", DISK_SIZE)
    first = session.boot(Disk("load", image, here))
    first.guest.run("start_load load")
    first.check_load("load")
    second = session.incoming(Disk("load", image, there))
    first.migrate_to(second)
    first.end()
    second.check_load("load")
    third = session.incoming(Disk("load", image, here))
    second.migrate_to(third)
    second.end()
    third.check_load("load")
    third.guest.run("end_load")
    third.end()
    check_image(image)


# covers: M9
def cancel(session: Session) -> None:
    """Every way to fail leaves the source at work; then one succeeds."""
    image = session.env.image("load.img", DISK_SIZE)
    source = session.boot(Disk("load", image, PLANE))
    source.guest.run("start_load load")

    # While memory is copied. The bandwidth is so small that it cannot end.
    target = session.incoming(Disk("load", image, PLANE))
    source.begin_migration(target, bandwidth=MIB)
    source.wait_migration("active")
    source.check_load("load")
    source.cmd("migrate_cancel")
    source.wait_migration("cancelled")
    source.check_load("load")
    target.kill()

    # Past the point where the plane was stopped for the move.
    source.capability("pause-before-switchover", True)
    target = session.incoming(Disk("load", image, PLANE))
    source.begin_migration(target)
    source.wait_migration("pre-switchover")
    source.cmd("migrate_cancel")
    source.wait_migration("cancelled")
    source.wait_state("running")
    source.check_load("load")
    target.kill()

    # The destination dies when the source believes that it is done.
    target = session.incoming(Disk("load", image, PLANE))
    source.begin_migration(target)
    source.wait_migration("pre-switchover")
    target.kill()
    source.cmd("migrate-continue", state="pre-switchover")
    source.wait_migration("failed")
    source.wait_state("running")
    source.check_load("load")

    source.capability("pause-before-switchover", False)
    target = session.incoming(Disk("load", image, PLANE))
    source.migrate_to(target)
    source.end()
    target.check_load("load")
    target.guest.run("end_load")
    target.end()
    check_image(image)


# covers: M9
def multifd(session: Session) -> None:
    """Over several connections at once; cancelled ones, then one succeeds."""
    image = session.env.image("load.img", DISK_SIZE)
    source = session.boot(Disk("load", image, PLANE))
    source.guest.run("start_load load")
    source.multifd(CHANNELS)

    # While memory is copied, and past the point where the plane was stopped.
    for state, bandwidth in (("active", MIB), ("pre-switchover", 1 << 30)):
        source.capability("pause-before-switchover",
                          state == "pre-switchover")
        target = session.incoming(Disk("load", image, PLANE))
        target.multifd(CHANNELS)
        source.begin_migration(target, bandwidth)
        source.wait_migration(state)
        if state == "active":
            source.check_load("load")
        source.cmd("migrate_cancel")
        source.wait_migration("cancelled")
        source.wait_state("running")
        source.check_load("load")
        target.kill()

    source.capability("pause-before-switchover", False)
    target = session.incoming(Disk("load", image, PLANE))
    target.multifd(CHANNELS)
    source.migrate_to(target)
    source.check_multifd()
    source.end()
    target.check_load("load")
    target.guest.run("end_load")
    target.end()
    check_image(image)


def failing(kind: str, offset: int, size: int,
            once: bool = False) -> List[Dict[str, Any]]:
    """Rules with which every 4 KiB request of a kind fails in a range."""
    return [{"event": "none", "iotype": kind, "errno": 5, "once": once,
             "sector": sector}
            for sector in range(offset // SECTOR, (offset + size) // SECTOR, 8)]


def parked_image(session: Session) -> str:
    """An image with something to read; returns its path."""
    image = session.env.image("parked.img", DISK_SIZE)
    with open(image, "r+b") as file:
        file.seek(READ_OFFSET)
        file.write(bytes(i * 7 % 251 for i in range(READ_SIZE)))
    return image


def read_sum() -> str:
    """Checksum of what parked_image() put there."""
    data = bytes(i * 7 % 251 for i in range(READ_SIZE))
    return hashlib.sha256(data).hexdigest()


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
    image = parked_image(session)
    bad_read = failing("read", READ_OFFSET, READ_SIZE)
    bad_writes = failing("write", WRITES_OFFSET, WRITES_SIZE)
    first = session.boot(Disk("parked", image, here, bad_read))
    park(first, "start_read parked")
    second = session.incoming(Disk("parked", image, there, bad_writes))
    first.migrate_to(second)
    first.end()
    resume(second, f"end_read {read_sum()}")
    park(second, "start_writes parked")
    third = session.incoming(Disk("parked", image, here))
    second.migrate_to(third)
    second.end()
    resume(third, "end_writes")
    third.end()


# covers: M9, M11
def parked_packed(session: Session, here: Server, there: Server) -> None:
    """A parked request of a packed virtqueue travels, one way."""
    image = parked_image(session)
    bad_read = failing("read", READ_OFFSET, READ_SIZE)
    first = session.boot(Disk("parked", image, here, bad_read, packed=True))
    park(first, "start_read parked")
    second = session.incoming(Disk("parked", image, there, packed=True))
    first.migrate_to(second)
    first.end()
    resume(second, f"end_read {read_sum()}")
    second.end()


# covers: M9
def parked_cancel(session: Session) -> None:
    """Parked requests complete at the source when the move was cancelled."""
    image = parked_image(session)
    rules = failing("read", READ_OFFSET, READ_SIZE, once=True)
    source = session.boot(Disk("parked", image, PLANE, rules))
    park(source, "start_read parked")
    source.capability("pause-before-switchover", True)
    target = session.incoming(Disk("parked", image, PLANE))
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
