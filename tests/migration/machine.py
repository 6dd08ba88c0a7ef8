# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
One QEMU process of the migration test, and the guest inside it.

This knows how the process is started, how it migrates, what its data plane
says of itself, and how to run a command in the guest. What is tested, and in
which order, stands in cases.py.
"""

import json
import os
import select
import time
from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional

from qemu.machine import QEMUMachine
from qemu.machine.machine import VMLaunchFailure

import waiting
from hosts import Host

# Nothing is measured with these: they end a test that hangs.
GUARD = 120
BOOT_GUARD = 240

# On a host of its own; below are what Linux chooses itself.
MIGRATION_PORT = 4444


class TestFailed(Exception):
    """Something did not behave as it must; the text says what."""


wait_until = partial(waiting.wait_until, guard=GUARD, failure=TestFailed)


class Channel:
    """
    Commands to the guest's first process, over a serial port.

    It is the host's end of one QEMU process: after a migration the guest is
    to be asked through the channel of the process where it arrived.

    Commands bear numbers, as one that stops the guest may be answered only
    after the migration, when the next was sent. Nothing is asked twice: an
    answer that does not come is a fault.
    """

    #: of all commands, as an answer may come from another QEMU process
    number = 0

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.pending = b""

    def _line(self, end: float, what: str, said: List[str]) -> str:
        """The next line; said is what came before it."""
        while b"\n" not in self.pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                pending = self.pending.decode(errors="replace")
                raise TestFailed(f"the guest does not answer: {what}; it said "
                                 f"{said + [pending]}")
            data = self.sock.recv(4096)
            if not data:
                raise TestFailed(f"QEMU went away during: {what}")
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")

    def _answer(self, number: int, what: str, guard: float) -> str:
        """
        What the guest prints up to its "@@ NUMBER 0", without the answers to
        earlier commands, for which the test did not wait.
        """
        end = time.monotonic() + guard
        lines: List[str] = []
        while True:
            line = self._line(end, what, lines)
            if not line.startswith("@@ "):
                lines.append(line)
                continue
            answered, status = line.split()[1:]
            if answered == str(number):
                break
            lines = []
        text = "\n".join(lines)
        if status != "0":
            raise TestFailed(f"in the guest, {what} failed: {text}")
        return text

    def boot(self) -> None:
        """Waits for the guest to be ready."""
        self._answer(0, "boot", BOOT_GUARD)

    def start(self, command: str) -> None:
        """Has a command run that may stop the guest before it answers."""
        Channel.number += 1
        self.sock.sendall(f"{Channel.number} {command}\n".encode())

    def run(self, command: str, guard: float = GUARD) -> str:
        """Runs a command in the guest; raises if its status is not 0."""
        self.start(command)
        return self._answer(Channel.number, command, guard)


class Server(NamedTuple):
    """What serves a disk, always in an IOThread: our plane or QEMU's path."""
    plane: bool
    stock: bool = False     # in the binary that Debian ships


PLANE = Server(plane=True)
OWN_PATH = Server(plane=False)
STOCK = Server(plane=False, stock=True)


class Disk:
    """
    One virtio-blk device as a QEMU process of the test is given it.

    serial: names device, node and disk alike
    path:   raw image, shared by source and destination
    server: what serves it, which tells also what binary its process runs
    errors: rules for blkdebug's inject-error, if requests shall fail
    packed: the guest uses a packed virtqueue
    """

    def __init__(self, serial: str, path: str, server: Server,
                 errors: Optional[List[Dict[str, Any]]] = None,
                 packed: bool = False) -> None:
        self.serial = serial
        self.path = path
        self.server = server
        self.errors = errors
        self.packed = packed

    def args(self, has_plane: bool) -> List[str]:
        """QEMU's arguments. Without has_plane, QEMU knows no property."""
        node: Dict[str, Any] = {"driver": "file", "filename": self.path}
        if self.errors:
            node = {"driver": "blkdebug", "image": node,
                    "inject-error": self.errors}
        node["node-name"] = self.serial
        device: Dict[str, Any] = {
                  "driver": "virtio-blk-pci", "id": self.serial,
                  "serial": self.serial, "drive": self.serial,
                  "iothread": "io0", "werror": "stop", "rerror": "stop",
                  # So long that the used ring fills more than a page: the
                  # device alone dirties the one with its index.
                  "queue-size": 1024}
        if self.packed:
            device["packed"] = True
        if has_plane and not self.server.plane:
            device["x-data-plane"] = "off"
        return ["-blockdev", json.dumps(node), "-device", json.dumps(device)]


class Machine(QEMUMachine):
    """A QEMU process with the guest in it, or waiting for one to arrive."""

    def __init__(self, env: Any, name: str, disks: List[Disk],
                 incoming: bool = False, host: Optional[Host] = None) -> None:
        self.stock = any(disk.server.stock for disk in disks)
        super().__init__(env.stock if self.stock else env.qemu,
                         name=name, base_temp_dir=env.work,
                         log_dir=env.work, qmp_timer=GUARD,
                         wrapper=(*(host.prefix if host else ()),
                                  "setpriv", "--pdeathsig", "KILL"))
        self.env = env
        self.name = name
        self.host = host
        self.has_plane = env.has_plane and not self.stock
        self.disks = {disk.serial: disk for disk in disks}
        # Relative: a socket's path may not be long, the project's may.
        self.uri = f"unix:{name}.migrate"
        if host:
            self.uri = f"tcp:{host.address}:{MIGRATION_PORT}"
        self.channel: Optional[Channel] = None
        # By its version, as both ends must have the same.
        self.set_machine("pc-i440fx-10.0")
        self.set_console()
        self.add_args("-accel", "tcg", "-m", "512", "-nodefaults",
                      "-serial", f"file:{env.work}/{name}.console",
                      "-kernel", env.kernel, "-initrd", env.initrd,
                      "-append", "console=ttyS1 quiet panic=-1 "
                      "rdinit=/migration/init",
                      "-no-reboot", "-object", "iothread,id=io0")
        for disk in disks:
            self.add_args(*disk.args(self.has_plane))
        if incoming:
            self.add_args("-incoming", "defer")
        if not self.has_plane:
            return
        self.add_args("-trace", "virtio_blk_data_plane_state",
                      "-trace", "virtio_blk_data_plane_decline",
                      "-D", f"{env.work}/{name}.trace")

    def start(self) -> "Machine":
        """Starts the process; a guest that boots is ready on return."""
        try:
            self.launch()
        except VMLaunchFailure as error:
            raise TestFailed(f"{self._name} does not start: "
                             f"{error.output}") from error
        self.channel = Channel(self.console_socket)
        if "-incoming" not in self.args:
            self.guest.boot()
        return self

    @property
    def guest(self) -> Channel:
        """The guest's channel, once the process runs."""
        assert self.channel is not None
        return self.channel

    # ---- state

    def run_state(self) -> str:
        """QEMU's run state, such as "running" or "io-error"."""
        return str(self.cmd("query-status")["status"])

    def wait_state(self, state: str) -> None:
        """Waits until QEMU is in a run state."""
        wait_until(f"run state {state} (it is {self.run_state()})",
                   lambda: self.run_state() == state)

    def plane(self, serial: str) -> Dict[str, Any]:
        """What the plane of a disk says of itself."""
        info = self.cmd("qom-get", path=f"/machine/peripheral/{serial}"
                        "/virtio-backend", property="x-data-plane-info")
        assert isinstance(info, dict)
        return info

    def served(self, serial: str) -> int:
        """Requests that this process has completed for a disk."""
        if self.has_plane and self.disks[serial].server.plane:
            queues = self.plane(serial)["queues"]
            return sum(int(queue["completed"]) for queue in queues)
        for stats in self.cmd("query-blockstats"):
            if serial in stats.get("qdev", "").split("/"):
                stats = stats["stats"]
                return int(stats["rd_operations"] + stats["wr_operations"])
        raise TestFailed(f"query-blockstats does not know disk {serial}")

    def check_path(self, serial: str) -> None:
        """The disk is served by whom it should be served."""
        if not self.has_plane:
            return
        info = self.plane(serial)
        want = self.disks[serial].server.plane
        if bool(info["serving"]) != want:
            raise TestFailed(f"the plane of {serial} in {self._name} should "
                             f"{'' if want else 'not '}serve: {info}")

    def check_load(self, serial: str, requests: int = 200) -> None:
        """The disk's load goes on, on the path where it should."""
        before = self.served(serial)
        wait_until(f"{requests} more requests of {serial} in {self._name}",
                   lambda: self.served(serial) >= before + requests)
        self.check_path(serial)

    # ---- migration

    def capability(self, name: str, value: bool) -> None:
        """Switches one of the migration's capabilities."""
        self.cmd("migrate-set-capabilities",
                 capabilities=[{"capability": name, "state": value}])

    def multifd(self, channels: int) -> None:
        """Both sides are to be told."""
        self.capability("multifd", True)
        self.cmd("migrate-set-parameters", **{"multifd-channels": channels})

    def check_multifd(self) -> None:
        """A migration that is over has used it."""
        ram = self.cmd("query-migrate")["ram"]
        if not ram["multifd-bytes"]:
            raise TestFailed(f"nothing went by multifd: {ram}")

    def migration(self) -> str:
        """The state of the migration, such as "active"."""
        return str(self.cmd("query-migrate").get("status", "none"))

    def wait_migration(self, *states: str) -> str:
        """Waits until the migration has come to one of these states."""
        def reached() -> str:
            now = self.migration()
            if now == "failed" and now not in states:
                info = self.cmd("query-migrate")
                raise TestFailed(f"migration failed: {info.get('error-desc')}")
            return now if now in states else ""
        return str(wait_until(f"migration state {' or '.join(states)}",
                              reached))

    def begin_migration(self, other: "Machine",
                        bandwidth: int = 1 << 30) -> None:
        """Begins to send the guest to a process started with -incoming."""
        other.cmd("migrate-incoming", uri=other.uri)
        self.cmd("migrate-set-parameters",
                 **{"max-bandwidth": bandwidth, "downtime-limit": 1000})
        self.cmd("migrate", uri=other.uri)

    def migrate_to(self, other: "Machine") -> None:
        """Sends the guest away, under whatever load it is."""
        self.begin_migration(other)
        self.wait_migration("completed")
        other.wait_migration("completed")

    def end(self) -> None:
        """Ends the process; one that crashed before is an error."""
        if not self.is_running():
            raise TestFailed(f"{self._name} died: {self.get_log()}")
        self.shutdown()
        if self.exitcode() != 0:
            raise TestFailed(f"{self._name} ended with {self.exitcode()}")


class Environment:
    """
    What all cases share: binary, kernel and initramfs; and the case's own
    directory, which is the current one while the case runs.
    """

    def __init__(self, qemu: str, stock: str, kernel: str, initrd: str,
                 work: str, has_plane: bool) -> None:
        self.qemu = qemu
        self.stock = stock
        self.kernel = kernel
        self.initrd = initrd
        self.work = work
        self.has_plane = has_plane

    def image(self, name: str, size: int) -> str:
        """Makes an empty raw image and returns its path."""
        path = os.path.join(self.work, name)
        with open(path, "wb") as image:
            image.truncate(size)
        return path
