# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What a case of the migration test has: the QEMU processes that it started, and
the hosts on which they run.
"""

import os
import subprocess
from typing import List, Optional

from hosts import Host, Network
from machine import Disk, Environment, Machine, TestFailed

MIB = 1024 * 1024
DISK_SIZE = 48 * MIB


class Session:
    """The QEMU processes and hosts of one case, which all end with it."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.machines: List[Machine] = []
        self.networks: List[Network] = []

    def network(self) -> Network:
        """Two hosts with a cable between them."""
        network = Network()
        self.networks.append(network)
        return network

    def boot(self, *disks: Disk, host: Optional[Host] = None) -> Machine:
        """A process whose guest has booted."""
        return self._start(Machine(self.env, self._name(), list(disks), False,
                                   host))

    def incoming(self, *disks: Disk, host: Optional[Host] = None,
                 paused: bool = False) -> Machine:
        """A process that waits for a guest, and if paused for "cont", too."""
        machine = Machine(self.env, self._name(), list(disks), True, host)
        if paused:
            machine.add_args("-S")
        return self._start(machine)

    def _name(self) -> str:
        return f"qemu{len(self.machines)}"

    def _start(self, machine: Machine) -> Machine:
        self.machines.append(machine)
        return machine.start()

    def close(self) -> None:
        """Ends what the case has left running."""
        for machine in self.machines:
            if machine.is_running():
                machine.kill()
        for network in self.networks:
            network.close()


def check_image(path: str) -> None:
    """The host, too, finds the file system clean."""
    path_env = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
    done = subprocess.run(["e2fsck", "-f", "-n", path], env=path_env,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False, text=True)
    if done.returncode != 0:
        raise TestFailed(f"e2fsck on the host: {done.stdout}")
