# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What the tests of firmware share: machines of other architectures, whose disk is
virtio-blk with the id "d0", what QEMU says of them, and how cases are run.

Knows no architecture and no firmware. To be imported by what lies beside it.
"""

import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent.parent / "build"

sys.path.insert(0, str(BUILD / "tree" / "python"))

# pylint: disable=wrong-import-position
from qemu.machine import QEMUMachine  # noqa: E402

# Nothing is measured with this: it ends a test that hangs.
GUARD = 60.0


class Failed(Exception):
    """Something did not behave as it must; the text says what."""


def check(condition, text):
    """Fail with text unless condition is true."""
    if not condition:
        raise Failed(text)


def noise(size):
    """Bytes that are found nowhere else, the same in each run."""
    return bytearray(random.Random(1).randbytes(size))


def binary(architecture):
    """The QEMU of "scripts/build --config targets"."""
    return BUILD / "targets" / f"qemu-system-{architecture}"


def machine(architecture, folder, *args):
    """A machine that does not run yet."""
    vm = QEMUMachine(str(binary(architecture)), name=architecture,
                     base_temp_dir=str(folder), qmp_timer=GUARD)
    vm.add_args("-accel", "tcg", "-m", "256", "-nodefaults",
                "-display", "none", "-S", "-object", "iothread,id=io0", *args)
    return vm


def info(vm, device="d0"):
    """What the data plane says of itself."""
    path = f"/machine/peripheral/{device}"
    # On virtio-mmio there is no device around it.
    if any(child["name"] == "virtio-backend"
           for child in vm.cmd("qom-list", path=path)):
        path += "/virtio-backend"
    return vm.cmd("qom-get", path=path, property="x-data-plane-info")


def read_operations(vm):
    """Requests of the guest that read, as the block layer counts them."""
    for entry in vm.cmd("query-blockstats"):
        if entry["qdev"] in ("d0", "/machine/peripheral/d0/virtio-backend"):
            return entry["stats"]["rd_operations"]
    raise Failed("query-blockstats does not list the disk")


def guest_memory(vm, folder, address, size):
    """What the guest has in its memory there."""
    path = folder / "memory"
    vm.cmd("pmemsave", val=address, size=size, filename=str(path))
    data = path.read_bytes()
    path.unlink()
    return data


def wait_event(vm, name, failure):
    """Wait for an event of QEMU and return it; it must not take GUARD."""
    try:
        event = vm.event_wait(name, timeout=GUARD)
    except TimeoutError as error:
        raise Failed(f"{failure} within {GUARD:.0f} s") from error
    check(event, "QEMU is gone")
    return event


def check_counters(vm, plane):
    """The plane has served all requests, or none."""
    status = info(vm)
    if not plane:
        check(not status["queues"], "a disk without data plane has queues")
        return
    check(status["queues"], "the data plane does not serve: "
          + status.get("reason", "no reason given"))
    queue = status["queues"][0]
    done = read_operations(vm)
    check(status["starts"] > 0, "the data plane was never started: "
          + status.get("reason", "no reason given"))
    check(queue["reads"] == done, f"the guest read {done} times, and the data "
          f"plane served {queue['reads']} reads")
    check(done > 0, "nothing was read")
    check(queue["errors"] == 0, f"{queue['errors']} requests failed")
    check(queue["kicks"] > 0, "the plane was never notified")


def run_case(name, function, args):
    """Run a case and print its line; returns whether it failed."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            function(Path(folder), *args)
        except Failed as error:
            print(f"not ok {name}: {error}", flush=True)
            return True
        except Exception as error:  # pylint: disable=broad-except
            text = str(error).replace("\n", " ")
            print(f"not ok {name}: {type(error).__name__}: {text}")
            for line in traceback.format_exc().splitlines():
                print(f"# {line}", flush=True)
            return True
    print(f"ok {name}")
    print(f"# {time.monotonic() - begin:.1f} s", flush=True)
    return False


def run_cases(architecture, cases):
    """Run them all, each (NAME, FUNCTION, ARGUMENTS); returns exit status."""
    if not binary(architecture).exists():
        sys.exit(f"{binary(architecture)} is missing: "
                 "run scripts/build --config targets")
    # As with ^C, what was made is to be taken away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failures = []
    try:
        for case in cases:
            failures.append(run_case(*case))
    except SystemExit:
        # By SIGTERM, or by what a case called: it may say 0, but not all ran.
        print("targets: ended early", file=sys.stderr)
    return 1 if len(failures) < len(cases) or any(failures) else 0
