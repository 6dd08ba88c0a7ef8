# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
A host with libvirt: its daemon, and virsh beside it.

The host is a network namespace (tests/hosts) in which the daemon has
namespaces of its own for all that it could change, see enter. Knows nothing of
domains.
"""

import os
import subprocess
import uuid
from functools import partial
from pathlib import Path
from typing import List, Optional, Sequence

import waiting
from hosts import Host
from machine import TestFailed

HERE = Path(__file__).resolve().parent

#: hang guards
GUARD = 120
START_GUARD = 60

wait_until = partial(waiting.wait_until, guard=GUARD, failure=TestFailed)


class Daemon:
    """
    libvirtd on a host. Use close() at the end: all that runs there ends, too.

    :param made: the folder that tests/libvirt/prepare has filled
    :param work: the folder that all daemons see as /work
    """

    def __init__(self, host: Host, name: str, made: Path, work: Path):
        self.host = host
        self.name = name
        self.root = made / "root"
        self.local = work / f"{name}.local"
        self.local.mkdir()
        # With its parent's end the shell ends, and with the shell, which is
        # the first process there, all other processes.
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *host.prefix, "unshare",
             "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
             HERE / "enter", self.root, made / "qemu", work, self.local, name,
             str(uuid.uuid4())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=open(work / f"{name}.log", "wb"), text=True,
            start_new_session=True)
        assert self._process.stdout is not None
        self._pid = self._process.stdout.readline().strip()
        try:
            wait_until("libvirtd to answer", self._answers,
                       guard=START_GUARD)
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise TestFailed(f"libvirtd of {self.name} ended, see "
                             f"{self.name}.log")
        return self._run(["virsh", "version"]).returncode == 0

    def _command(self, command: Sequence[str]) -> List[str]:
        return ["nsenter", "--target", self._pid, "--mount", "--pid", "--net",
                "--ipc", "--uts", "chroot", str(self.root), *command]

    def _run(self, command: Sequence[str], text: Optional[str] = None
             ) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                self._command(command), input=text or "", text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=GUARD,
                check=False)
        except subprocess.TimeoutExpired as error:
            raise TestFailed(f"{' '.join(command)} hangs") from error

    def run(self, *command: str, text: Optional[str] = None) -> str:
        """Runs a program there; returns what it prints, raises if it fails."""
        result = self._run(command, text)
        if result.returncode != 0:
            raise TestFailed(f"{' '.join(command)}: "
                             + " ".join(result.stderr.split()))
        return result.stdout

    def virsh(self, *arguments: str, text: Optional[str] = None) -> str:
        """
        The same for a command of virsh.

        :param text: becomes the file /dev/stdin, if an argument names it.
        """
        return self.run("virsh", "--quiet", *arguments, text=text)

    def background(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command of virsh that waits for something."""
        return subprocess.Popen(
            self._command(["virsh", "--quiet", *arguments]), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)

    def close(self) -> None:
        """Ends it, its domains, and what they run in."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._pid:
            self._wait_end()

    def _wait_end(self) -> None:
        """The first process there is the kernel's to end, after ours."""
        wait_until(f"the end of the processes of {self.name}",
                   lambda: not os.path.exists(f"/proc/{self._pid}"))
