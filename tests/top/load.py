# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
QEMUs for the tool to look at: under load, idle, or without the series.

Knows how they are started and ended, and the driver of the benchmark, which
knows what it has done to its disk. Only processes that were started here are
ended.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / name) for name in ('bench', 'hosts', 'soak')]

# pylint: disable=wrong-import-position
from machine import BACKEND, Config, Machine, Tools  # noqa: E402
from scenarios import throttle  # noqa: E402
from session import Qmp, kill_group  # noqa: E402
from waiting import wait_until  # noqa: E402

QUEUES, IOTHREADS = 2, 2
DEPTH = 16
ALL_IN_FLIGHT = QUEUES * DEPTH
CONFIG = Config('top', QUEUES, IOTHREADS, 'raw', depth=DEPTH, direct=True)
#: what the driver verifies at once
BLOCK = 4096

#: hang guard, far beyond what any step takes
GUARD = 60


class Wrong(Exception):
    """Something is not as it must be; the text says what."""


class LoadedVm:
    """
    Use as 'with LoadedVm(...) as vm': a QEMU whose disk d0 has a driver that
    keeps its queues full, and counts.

    qemu: the folder where it was built
    plane: whether the data plane serves it
    socket: of a monitor for the tool; busy: of one to which the test is
    connected
    """

    def __init__(self, qemu: Path, driver: Path, work: Path,
                 plane: bool = True):
        tools = Tools(str(qemu / 'qemu-system-x86_64'), str(qemu / 'qemu-img'),
                      str(driver), str(work), '', stock=not plane)
        folder = work / ('plane' if plane else 'no-plane')
        self._machine = Machine(tools, CONFIG, str(folder), seed=1)
        self.socket, self.busy = folder / 'other', folder / 'qmp'

    def __enter__(self) -> 'LoadedVm':
        self._machine.__enter__()
        return self

    def __exit__(self, kind: Optional[type], *exc: object) -> None:
        self._machine.__exit__(kind, *exc)

    def quiesce(self) -> Dict[str, int]:
        """Completes what is in flight; returns what the driver has counted."""
        self._machine.driver.cmd('quiesce')
        return self.stats()

    def resume(self) -> None:
        """The pair of quiesce(); returns when there are many requests more."""
        self._machine.resume()

    def stats(self) -> Dict[str, int]:
        """What the driver has counted."""
        return self._machine.driver.stats()

    def in_flight(self) -> int:
        """As QEMU counts at the moment."""
        return sum(queue['in-flight'] for queue
                   in self._machine.plane()['queues'])

    def throttle(self, iops: int) -> None:
        """Limits the disk; 0: not any more."""
        throttle(self._machine, **({'iops': iops} if iops else {}))

    def histogram(self, bounds: List[int]) -> None:
        """Asks for histograms with these bounds, or for none."""
        self._machine.cmd('block-latency-histogram-set', id=BACKEND,
                          **({'boundaries': bounds} if bounds else {}))


def monitor(path: Path) -> List[str]:
    """Options of QEMU for a QMP socket."""
    return ['-qmp', f'unix:{path},server=on,wait=off']


class Vm:
    """
    Use as 'with Vm(...)': a QEMU with nothing to do.

    name: of the VM and of the socket
    options: words beside the usual ones
    """

    def __init__(self, qemu: str, work: Path, name: str, *options: str):
        self.socket = work / name
        self._command = [qemu, '-nodefaults', '-display', 'none', '-S',
                         '-machine', 'q35', '-name', name,
                         *monitor(self.socket), *options]
        self._log = work / f'{name}.log'
        self._process: Optional[subprocess.Popen] = None

    def __enter__(self) -> 'Vm':
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    def start(self) -> None:
        """Also after an end, in the same place."""
        self.socket.unlink(missing_ok=True)
        with open(self._log, 'wb') as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True)
        process = self._process

        def there() -> bool:
            if process.poll() is not None:
                raise Wrong(f'{self.socket.name} does not start: '
                            + self._log.read_text(errors='replace')[-300:])
            try:
                # Answers when the disks are there, too.
                Qmp(str(self.socket)).close()
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        wait_until(f'{self.socket}', there, GUARD, Wrong)

    def end(self) -> None:
        """At once, as with a crash."""
        if self._process is not None:
            self.hang(False)
            kill_group(self._process)
            self._process = None

    def hang(self, yes: bool) -> None:
        """All of QEMU stands still, or goes on."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid,
                      signal.SIGSTOP if yes else signal.SIGCONT)


def disk_options(mapping: str) -> List[str]:
    """A disk without a driver, for an idle QEMU."""
    return ['-object', 'iothread,id=io0', '-blockdev', 'null-co,node-name=d0',
            '-device', f'virtio-blk-pci,id=disk0,drive=d0{mapping}']
