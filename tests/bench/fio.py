# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
fio on the file that is behind the disks: what the host gives at best, without
a device in between.

Offers what session.DriverSession does, so that it can be one more subject. fio
has no session: each run is a process.
"""

import json
import os
import subprocess
import tempfile
from typing import Dict, List, Optional, Tuple

from plan import Workload
from session import SessionError, kill_group, last_words

FIO = '/usr/bin/fio'

#: measured: larger batches gain nothing any more
BATCH = 32

RW = {('read', 'random'): 'randread', ('read', 'sequential'): 'read',
      ('write', 'random'): 'randwrite', ('write', 'sequential'): 'write',
      ('mixed', 'random'): 'randrw', ('mixed', 'sequential'): 'rw'}


def command(path: str, direct: bool, load: Workload, time_ms: int, jobs: int,
            cpus: List[int], seed: int) -> List[str]:
    """
    fio's words, as fast as it can be: with aligned buffers and in batches. No
    warm-up, whose CPU time would be counted.
    """
    batch = min(load.depth, BATCH)
    words = {
        'name': 'bench', 'filename': path, 'allow_file_create': 0,
        'ioengine': 'io_uring', 'fixedbufs': 1, 'registerfiles': 1,
        'direct': int(direct), 'invalidate': 0,
        'rw': RW[load.rw, load.pattern], 'rwmixwrite': load.write_percent,
        'bs': load.bs, 'iomem': 'mmap', 'iodepth': load.depth,
        'iodepth_batch_submit': batch, 'iodepth_batch_complete_min': 1,
        'iodepth_batch_complete_max': batch, 'norandommap': 1,
        'randseed': seed, 'time_based': 1, 'runtime': f'{time_ms}ms',
        'thread': 1, 'numjobs': jobs, 'group_reporting': 1,
        'lat_percentiles': 1, 'clat_percentiles': 0, 'slat_percentiles': 0,
        'percentile_list': '50:99:99.9', 'output-format': 'json+',
    }
    if cpus:
        words['cpus_allowed'] = ','.join(map(str, cpus))
        words['cpus_allowed_policy'] = 'split' if jobs == len(cpus) > 1 \
            else 'shared'
    return [FIO] + [f'--{name}={value}' for name, value in words.items()]


def percentile(bins: List[Tuple[int, int]], percent: float) -> int:
    """The latency that so many requests did not exceed."""
    wanted = sum(count for _, count in bins) * percent / 100
    seen = 0
    for latency, count in bins:
        seen += count
        if seen >= wanted:
            return latency
    return bins[-1][0]


def latency_bins(directions: List[dict]) -> List[Tuple[int, int]]:
    """fio's histograms of both directions in one."""
    bins: Dict[int, int] = {}
    for direction in directions:
        for latency, count in direction['lat_ns'].get('bins', {}).items():
            bins[int(latency)] = bins.get(int(latency), 0) + count
    return sorted(bins.items())


def convert(job: dict) -> dict:
    """A job's results in the driver's form."""
    directions = [job[name] for name in ('read', 'write')
                  if job[name]['total_ios']]
    requests = sum(direction['total_ios'] for direction in directions)
    if job['error'] or not requests:
        raise SessionError(f'fio failed with error {job["error"]} after '
                           f'{requests} requests')
    seconds = max(direction['runtime'] for direction in directions) / 1000
    bins = latency_bins(directions)
    total = sum(direction['lat_ns']['mean'] * direction['lat_ns']['N']
                for direction in directions)
    # In percent of the time that all of its threads ran.
    busy = (job['usr_cpu'] + job['sys_cpu']) / 100 * job['job_runtime'] * 1e6
    return {
        'event': 'result', 'requests': requests, 'seconds': seconds,
        'iops': requests / seconds,
        'mb_per_second': sum(direction['io_bytes'] for direction in directions)
        / seconds / 1e6,
        'latency_ns': {
            'mean': total / requests, 'p50': percentile(bins, 50),
            'p99': percentile(bins, 99), 'p999': percentile(bins, 99.9),
            'max': max(direction['lat_ns']['max']
                       for direction in directions)},
        'histogram': [list(entry) for entry in bins],
        'cpu_ns_per_request': {'iothread': busy / requests,
                               'process': busy / requests},
        'notifications_per_request': {'available': None, 'used': None},
        'instructions_per_request': None, 'verified': 0,
    }


class FioSession:
    """
    Use as 'with FioSession(...) as session'.

    :param path: the file or block device
    :param log: file for what fio says
    """

    #: as of a DriverSession
    accel: Optional[str] = None
    note: Optional[str] = None

    def __init__(self, path: str, direct: bool, jobs: int, cpus: List[int],
                 log: str):
        self._path = path
        self._direct = direct
        self._jobs = jobs
        self._cpus = cpus
        self._log = log
        self._process: Optional[subprocess.Popen] = None

    def __enter__(self) -> 'FioSession':
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def run_fio(self, load: Workload, time_ms: int, timeout: float,
                seed: int) -> dict:
        """
        One run.

        :raise SessionError: when it failed.
        """
        words = command(self._path, self._direct, load, time_ms, self._jobs,
                        self._cpus, seed)
        if load.rw == 'read':
            words.append('--readonly')
        with tempfile.TemporaryFile() as output, open(self._log, 'wb') as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=log,
                start_new_session=True)
            try:
                status = self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise SessionError(f'fio did not end within {timeout:.0f} s',
                                   self._log) from None
            finally:
                self.close()
            output.seek(0)
            text = output.read().decode('utf-8', errors='replace')
        return self._result(status, text)

    def _result(self, status: int, text: str) -> dict:
        try:
            # Notes may stand before the object.
            result = convert(json.loads(text[text.index('{'):])['jobs'][0])
        except (ValueError, KeyError, IndexError):
            raise SessionError(f'fio ended with status {status}: '
                               + last_words(self._log), self._log) from None
        if status != 0:
            raise SessionError(f'fio ended with status {status}', self._log)
        return result

    def check_plane(self) -> None:
        """There is none."""

    def begin_close(self) -> None:
        """Nothing runs between runs."""

    def close(self) -> None:
        """Ends fio if it still runs."""
        if self._process is not None and self._process.poll() is None:
            kill_group(self._process)
        self._process = None


def version() -> str:
    """fio's own name for itself."""
    if not os.access(FIO, os.X_OK):
        return ''
    return subprocess.run([FIO, '--version'], capture_output=True, text=True,
                          check=False).stdout.strip()
