# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The machine that measures: what it is, for whoever reads the results later, and
what it can do.
"""

import os
import platform
import re
import subprocess
from typing import List, Optional

from options import Options

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
CPU = '/sys/devices/system/cpu'
#: more runnable tasks than this before we start will be seen in the results
BUSY = 0.7


class HostError(Exception):
    """The host cannot do what is asked for, in words for the user."""


def read(path: str) -> str:
    """A small file of the kernel's; empty if it is not there."""
    try:
        with open(path, encoding='utf-8', errors='replace') as source:
            return source.read().strip()
    except OSError:
        return ''


def output(*command: str) -> str:
    """What a program says; empty if it fails or is not there."""
    try:
        result = subprocess.run(command, capture_output=True, text=True,
                                check=False)
    except OSError:
        return ''
    return result.stdout.strip() if result.returncode == 0 else ''


def cpu_model() -> str:
    """The first CPU's name."""
    match = re.search(r'^model name\s*:\s*(.*)$', read('/proc/cpuinfo'),
                      re.MULTILINE)
    return match[1] if match else platform.machine()


def virtualised() -> Optional[str]:
    """Under which hypervisor this runs; None if under none."""
    name = output('systemd-detect-virt', '--vm')
    if name:
        return name
    return 'yes' if re.search(r'^flags\s*:.*\bhypervisor\b',
                              read('/proc/cpuinfo'), re.MULTILINE) else None


def memory_mib() -> int:
    """What the kernel has."""
    return (os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')) >> 20


def machine() -> dict:
    """For the file of results."""
    governor = read(f'{CPU}/cpu0/cpufreq/scaling_governor')
    return {
        'cpu': cpu_model(),
        'cpus': os.cpu_count(),
        'usable_cpus': len(os.sched_getaffinity(0)),
        'memory_mib': memory_mib(),
        'kernel': platform.release(),
        'governor': governor or None,
        'virtualised': virtualised(),
        'load_average': list(os.getloadavg()),
    }


def project() -> dict:
    """Which state of this project was measured."""
    commit = output('git', '-C', ROOT, 'rev-parse', 'HEAD')
    dirty = output('git', '-C', ROOT, 'status', '--porcelain')
    return {'commit': commit or None, 'dirty': bool(dirty) if commit else None}


def describe(info: dict) -> str:
    """The machine in one line."""
    words = [info['cpu'], f"{info['usable_cpus']} CPUs",
             f"{info['memory_mib'] >> 10} GiB", f"Linux {info['kernel']}"]
    if info['virtualised']:
        words.append(f"a VM ({info['virtualised']})"
                     if info['virtualised'] != 'yes' else 'a VM')
    if info['governor']:
        words.append(f"governor {info['governor']}")
    return ', '.join(words)


def siblings(cpu: int) -> List[int]:
    """The CPUs that share a core with this one, itself among them."""
    result: List[int] = []
    text = read(f'{CPU}/cpu{cpu}/topology/thread_siblings_list')
    for part in filter(None, text.split(',')):
        low, _, high = part.partition('-')
        result += range(int(low), int(high or low) + 1)
    return result or [cpu]


def choose_pin(options: Options) -> List[int]:
    """
    CPUs of driver and IOThreads; empty for none.

    :raise HostError: when the user names a CPU that there is not.
    """
    usable = sorted(os.sched_getaffinity(0))
    if options.pin is not None:
        missing = [cpu for cpu in options.pin if cpu not in usable]
        if missing:
            raise HostError(f'--pin: CPU {missing[0]} is not there or not for '
                            'us; there are '
                            + ', '.join(map(str, usable)))
        return options.pin
    if len(usable) < 2:
        return []
    return usable[:1 + options.iothreads]


def pin_notes(pin: List[int]) -> List[str]:
    """What about the CPUs makes results noisy."""
    notes = []
    if not pin:
        notes.append('nothing is pinned: expect more spread')
    elif set(siblings(pin[0])) & set(pin[1:]):
        notes.append(f'CPU {pin[0]} of the driver shares a core with an '
                     "IOThread's, which slows both; --pin chooses others")
    if os.getloadavg()[0] > BUSY:
        notes.append('other work runs on this machine (load average '
                     f'{os.getloadavg()[0]:.1f}): expect more spread')
    return notes


def free_huge_pages() -> int:
    """Pages of 2 MiB that nobody has."""
    return int(read('/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages')
               or 0)


def io_uring_off() -> Optional[str]:
    """Why QEMU cannot have io_uring here; None if it can."""
    # The file came with Linux 6.6; 1 allows it to root and one group only.
    disabled = read('/proc/sys/kernel/io_uring_disabled')
    if disabled == '2' or (disabled == '1' and os.geteuid() != 0):
        return ('io_uring is switched off on this host (sysctl '
                f'kernel.io_uring_disabled={disabled})')
    return None
