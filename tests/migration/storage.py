# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Cases of the migration test in which the hosts share no storage: the disk has
to go, too.

Done as libvirt does it. The process that waits for the guest exports its empty
image by NBD; the disk is mirrored there while the guest writes; memory follows;
just before the guest changes over, when it stands still, the mirror ends, and
both images must be the same. The hosts are network namespaces (tests/hosts).
"""

import filecmp
from typing import Any, Dict

from hosts import Host, Network
from machine import Disk, Machine, PLANE, Server, TestFailed, wait_until
from session import DISK_SIZE, MIB, Session, check_image

SERIAL = "load"
NBD_PORT = 10809

# A mirror so slow that it is still at its beginning when it is looked at.
SLOWLY = 1 * MIB


class Mirror:
    """
    The source's disk on its way to the target's.

    node: that of the target, as the source knows it
    """

    def __init__(self, source: Machine, target: Machine, mode: str,
                 speed: int = 0) -> None:
        self.source = source
        self.target = target
        self.job = f"mirror-{target.name}"
        self.node = f"nbd-{target.name}"
        assert target.host is not None
        address = {"host": target.host.address, "port": str(NBD_PORT)}
        target.cmd("nbd-server-start",
                   addr={"type": "inet", "data": address})
        target.cmd("block-export-add", **{
            "type": "nbd", "id": "export", "node-name": SERIAL,
            "writable": True})
        source.cmd("blockdev-add", **{
            "driver": "nbd", "node-name": self.node, "export": SERIAL,
            # Or it would wait for ever for an answer that was lost.
            "server": {"type": "inet", "keep-alive": True, **address}})
        source.cmd("blockdev-mirror", **{
            "job-id": self.job, "device": SERIAL, "target": self.node,
            "sync": "full", "copy-mode": mode, "speed": speed,
            "auto-dismiss": False})

    def info(self) -> Dict[str, Any]:
        """What query-jobs says of it."""
        for info in self.source.cmd("query-jobs"):
            if info["id"] == self.job:
                assert isinstance(info, dict)
                return info
        raise TestFailed(f"{self.job} is gone")

    def wait(self, status: str) -> None:
        """Waits until it has come to this state."""
        def reached() -> bool:
            info = self.info()
            if info["status"] == "concluded" != status:
                raise TestFailed(f"the mirror ended: {info}")
            return bool(info["status"] == status)
        wait_until(f"the mirror to be {status}", reached)

    def wait_middle(self) -> None:
        """Waits until it has copied something; it shall not have copied all."""
        wait_until("the mirror to copy", lambda:
                   self.info()["current-progress"] > 0)
        if self.info()["status"] != "running":
            raise TestFailed(f"the mirror is not at work: {self.info()}")

    def finish(self) -> None:
        """It was ready and the guest stands still: both images are the same."""
        self.source.cmd("block-job-cancel", device=self.job)
        self.wait("concluded")
        if "error" in self.info():
            raise TestFailed(f"the mirror failed: {self.info()}")
        self.remove()
        one, other = (machine.disks[SERIAL].path
                      for machine in (self.source, self.target))
        if not filecmp.cmp(one, other, shallow=False):
            raise TestFailed(f"{other} is not the same as {one}")

    def fail(self) -> None:
        """It must, as the other host is gone."""
        self.wait("concluded")
        if "error" not in self.info():
            raise TestFailed(f"the mirror did not fail: {self.info()}")
        self.remove()

    def remove(self) -> None:
        """It has ended; the source knows nothing of the target any more."""
        self.source.cmd("job-dismiss", id=self.job)
        self.source.cmd("blockdev-del", **{"node-name": self.node})


def wait_here(session: Session, host: Host, server: Server,
              paused: bool = False) -> Machine:
    """A process with an empty disk of its own that waits for the guest."""
    image = session.env.image(f"disk{len(session.machines)}.img", DISK_SIZE)
    return session.incoming(Disk(SERIAL, image, server), host=host,
                            paused=paused)


def check_active(machine: Machine, active: bool) -> None:
    """Only where the guest is may its disk be written to."""
    for node in machine.cmd("query-named-block-nodes", flat=True):
        if node["node-name"] == SERIAL and node["active"] != active:
            raise TestFailed(f"the disk is {'not ' * active}active in "
                             f"{machine.name}")


def move(session: Session, source: Machine, host: Host, server: Server,
         mode: str, paused: bool) -> Machine:
    """
    Guest and disk go to another host; returns the process where they are.

    paused: the guest goes on only when told to, and until then the disk stays
            exported, as with libvirt
    """
    target = wait_here(session, host, server, paused)
    mirror = Mirror(source, target, mode)
    source.check_load(SERIAL)
    mirror.wait("ready")
    source.check_load(SERIAL)
    source.capability("pause-before-switchover", True)
    source.begin_migration(target)
    source.wait_migration("pre-switchover")
    mirror.finish()
    if not paused:
        target.cmd("block-export-del", id="export")
    source.cmd("migrate-continue", state="pre-switchover")
    source.wait_migration("completed")
    target.wait_migration("completed")
    check_active(source, False)
    check_active(target, True)
    target.cmd("nbd-server-stop")
    if paused:
        target.cmd("cont")
    source.end()
    target.check_load(SERIAL)
    return target


# covers: M1, M9, M10
def storage_and_back(session: Session, here: Server, there: Server) -> None:
    """With its disk to another host and back, under verified load."""
    network = session.network()
    image = session.env.image("disk.img", DISK_SIZE)
    first = session.boot(Disk(SERIAL, image, here), host=network.here)
    first.guest.run(f"start_load {SERIAL}")
    first.check_load(SERIAL)
    second = move(session, first, network.there, there, "background", True)
    third = move(session, second, network.here, here, "write-blocking", False)
    third.guest.run("end_load")
    third.end()
    check_image(third.disks[SERIAL].path)


class Failures:
    """Ways to fail, each of which must leave the source at work."""

    def __init__(self, session: Session, network: Network,
                 source: Machine) -> None:
        self.session = session
        self.network = network
        self.source = source

    def target(self) -> Machine:
        """Another process that waits in vain."""
        return wait_here(self.session, self.network.there, PLANE)

    def unharmed(self, target: Machine) -> None:
        """The guest is where it was, and the disk is served as before."""
        self.source.wait_state("running")
        self.source.check_load(SERIAL)
        target.kill()
        self.network.mend()

    def cancelled(self) -> None:
        """Given up while the disk is copied."""
        target = self.target()
        mirror = Mirror(self.source, target, "background", SLOWLY)
        mirror.wait_middle()
        self.source.cmd("job-cancel", id=mirror.job)
        mirror.wait("concluded")
        mirror.remove()
        self.unharmed(target)

    def in_the_middle(self) -> None:
        """The cable is pulled while the disk is copied."""
        target = self.target()
        mirror = Mirror(self.source, target, "background", SLOWLY)
        mirror.wait_middle()
        self.network.cut()
        self.source.check_load(SERIAL)
        mirror.fail()
        self.unharmed(target)

    def ready(self) -> None:
        """The cable is pulled while each write is made on both hosts."""
        target = self.target()
        mirror = Mirror(self.source, target, "write-blocking")
        mirror.wait("ready")
        self.source.check_load(SERIAL)
        self.network.cut()
        mirror.fail()
        self.unharmed(target)

    def with_memory(self) -> None:
        """The cable is pulled while memory is copied, which cannot end."""
        target = self.target()
        mirror = Mirror(self.source, target, "background")
        mirror.wait("ready")
        self.source.capability("pause-before-switchover", True)
        self.source.begin_migration(target, bandwidth=MIB)
        self.source.wait_migration("active")
        self.source.check_load(SERIAL)
        self.network.cut()
        self.source.check_load(SERIAL)
        self.source.wait_migration("failed")
        mirror.fail()
        self.unharmed(target)

    def switchover(self) -> Machine:
        """Up to where all but the guest itself has been moved."""
        target = self.target()
        mirror = Mirror(self.source, target, "background")
        mirror.wait("ready")
        # Without an answer the source would take what is still in its own
        # buffers as having arrived.
        for machine in (self.source, target):
            machine.capability("return-path", True)
        self.source.begin_migration(target)
        self.source.wait_migration("pre-switchover")
        mirror.finish()
        return target

    def at_switchover_cancelled(self) -> None:
        """Given up when the disk is complete there."""
        target = self.switchover()
        self.source.cmd("migrate_cancel")
        self.source.wait_migration("cancelled")
        self.unharmed(target)

    def at_switchover(self) -> None:
        """The cable is pulled when the disk is complete there."""
        target = self.switchover()
        self.network.cut()
        self.source.cmd("migrate-continue", state="pre-switchover")
        self.source.wait_migration("failed")
        self.unharmed(target)


# covers: M1, M9, M10
def storage_failures(session: Session) -> None:
    """Whatever fails, the source goes on unharmed; then the move succeeds."""
    network = session.network()
    image = session.env.image("disk.img", DISK_SIZE)
    source = session.boot(Disk(SERIAL, image, PLANE), host=network.here)
    source.guest.run(f"start_load {SERIAL}")
    source.check_load(SERIAL)
    failures = Failures(session, network, source)
    failures.cancelled()
    failures.in_the_middle()
    failures.ready()
    failures.with_memory()
    failures.at_switchover_cancelled()
    failures.at_switchover()
    target = move(session, source, network.there, PLANE, "background", True)
    target.guest.run("end_load")
    target.end()
    check_image(target.disks[SERIAL].path)
