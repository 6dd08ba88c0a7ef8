#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Unit tests of the benchmark: what it refuses, the order of the runs, the
statistics, and that a driver that fails in whatever way is no success. Needs
no QEMU, and no driver: some lines of shell take its place.
"""

import copy
import importlib.util
import json
import os
import socket
import tempfile
import time
import unittest
from collections import Counter

import fio
import options
import plan
import report
import run as bench_run
import session
import subjects
from images import Image
from options import Options, UsageError
from plan import Workload
from session import DriverSession, SessionError

LOAD = Workload('read', 'random', 4096, 32, 'poll')


def result(iops: float = 1000.0, iothread: float = 500.0, **changes) -> dict:
    """A good run."""
    return {
        'event': 'result', 'requests': 500, 'seconds': 0.5, 'iops': iops,
        'mb_per_second': 4.1,
        'latency_ns': {'mean': 900, 'p50': 800, 'p99': 2000, 'p999': 3000,
                       'max': 4000},
        'histogram': [[1000, 400], [4000, 100]],
        'cpu_ns_per_request': {'iothread': iothread, 'process': iothread},
        'notifications_per_request': {'available': 0.5, 'used': 0.0},
        'driver_ns_per_request': 12.3,
        'instructions_per_request': None, 'verified': 0, **changes}


def subject(name: str, **values) -> subjects.Subject:
    """Some QEMU."""
    return subjects.Subject(name, 'qemu', '/bin/false', **values)


class CommandLine(unittest.TestCase):
    """What is refused before anything is built."""

    def test_refused(self):
        """Wrong words and contradictions."""
        for words in (
                '--frobnicate', 'word', '--depth 0', '--depth x', '--depth 1,',
                '--bs 1000', '--bs 2m', '--bs 0', '--rw trim', '--repeat 0',
                '--backends file-native', '--backends nothing',
                '--subjects nobody', '--reference nobody',
                '--subjects ours --reference stock',
                '--depth 300 --queue-size 256', '--queue-size 300',
                '--no-indirect --depth 128 --queue-size 256',
                '--no-indirect --depth 1024', '--ring round',
                '--iothreads 2', '--queues 64 --bs 1m --depth 128',
                '--pin 0', '--pin 0,0', '--pin 0,1,2', '--pin 0,1 --no-pin',
                '--quick --time 100', '--quick --repeat 3',
                '--disk d --size 64', '--disk d --backends null-co',
                '--disk d --backends qcow2', '--disk d --rw write',
                '--disk d --rw read,mixed', '--disk d --verify',
                '--vhost-user s --rw write', '--vhost-user s --verify',
                '--overwrite', '--write-percent 50', '--throttle-iops 5 '
                '--backends null-co', '--verify --backends null-co',
                '--verify --subjects ours,fio --reference ours',
                '--qemu ours=/bin/true', '--qemu debian=/bin/true '
                '--subjects ours,stock', '--qemu stock=/a/q --subjects ours',
                '--qemu /a/q --qemu /b/q', '--qemu=',
                '--subjects fio --backends null-co',
                '--measure-driver --wait notify', '--measure-driver --verify',
                '--measure-driver --subjects ours', '--spdk-socket=',
                '--spdk-socket s --rw write', '--spdk-socket s --verify',
                '--spdk-socket s --spdk-socket t',
                '--spdk-socket ours=s',
                '--idle-disks 0', '--idle-disks 193', '--idle-queues 2',
                '--disks 0', '--disks 194', '--disks 3 --idle-disks 191',
                '--disks 2 --iothreads 3', '--disks 17 --queues 64',
                '--disks 2 --iothreads 3 --queues 4',
                '--measure-driver --disks 2',
                '--subjects alone,ours',
                '--self-test --repeat 2', '--show f --depth 1'):
            with self.assertRaises(UsageError, msg=words):
                options.parse(words.split())

    def test_accepted(self):
        """What looks strange and is not."""
        for words in (
                '', '--quick', '--no-indirect', '--depth 1024',
                '--ring packed', '--ring packed --no-indirect',
                '--ring packed --in-order', '--in-order',
                '--queues 2 --iothreads 2 --pin 0,1,2', '--pin 0,1',
                '--disk d', '--disk d --overwrite --rw write',
                '--vhost-user s --overwrite --verify', '--verify',
                '--subjects ours,fio', '--qemu new=/a/q --qemu old=/b/q',
                '--measure-driver --ring packed',
                '--measure-driver --depth 8 --no-build',
                '--spdk-socket s', '--spdk-socket s --overwrite --rw write',
                '--spdk-socket s --spdk-socket other=t',
                '--show f --plots d', '--idle-disks 192 --idle-queues 64',
                '--disks 193', '--disks 2 --idle-disks 191',
                '--disks 2 --iothreads 2', '--disks 16 --queues 64',
                '--rw mixed --write-percent 50', '--self-test --no-build'):
            options.parse(words.split())

    def test_defaults(self):
        """Values that depend on others."""
        parsed = options.parse(['--subjects', 'ours,debian'])
        self.assertEqual(parsed.reference, 'ours')
        self.assertEqual(options.parse(['--no-indirect']).queue_size, 512)
        self.assertEqual(options.parse([]).queue_size, 256)
        self.assertNotIn('fio', options.parse(['--verify']).subjects)
        self.assertNotIn('alone', options.parse([]).subjects)
        self.assertNotIn('fixed', options.parse([]).subjects)
        self.assertIn('fixed', options.parse(['--subjects', 'fixed']).subjects)
        idle = options.parse(['--idle-disks', '1'])
        self.assertIn('alone', idle.subjects)
        self.assertEqual(idle.reference, 'alone')
        self.assertEqual(options.parse(['--disk', 'd']).backends,
                         ['direct-io_uring'])

    def test_lists(self):
        """Groups, units, and values that are named twice."""
        parsed = options.parse('--backends file,file-threads --bs 4k,4096,512'
                               .split())
        self.assertEqual(parsed.backends, ['file-io_uring', 'file-threads'])
        self.assertEqual(parsed.bs, [4096, 512])

    def test_names(self):
        """A name is taken from the path, or given."""
        parsed = options.parse(['--qemu', 'new=/x/qemu=1', '--qemu', '/y/old'])
        self.assertEqual(parsed.qemu, [('new', '/x/qemu=1'),
                                       ('old', '/y/old')])
        self.assertEqual(parsed.names(), ['ours', 'direct', 'stock', 'debian',
                                          'fio', 'new', 'old'])
        parsed = options.parse(['--spdk-socket', '/x/s', '--vhost-user',
                                'v=/x/v', '--subjects', 'ours'])
        self.assertEqual(parsed.names(), ['ours', 'v', 'spdk'])

    def test_help_names_all(self):
        """Each backend and each subject is in the help."""
        text = options.make_parser().format_help()
        for word in [*options.BACKENDS, *options.SUBJECTS]:
            self.assertIn(word, text)


class Plan(unittest.TestCase):
    """The order of the runs."""

    def setUp(self):
        self.options = options.parse(
            '--depth 1,32 --rw read,write --wait poll,notify'.split())
        self.loads = plan.workloads(self.options)
        self.names = ['a', 'b', 'c']
        self.runs = self.schedule(1)

    def schedule(self, seed):
        """Four repetitions on one backend."""
        return list(plan.schedule(self.loads, self.names, range(4), seed,
                                  'null'))

    def test_workloads(self):
        """Each combination once, and depths together."""
        self.assertEqual(len(set(self.loads)), 8)
        self.assertEqual([load.depth for load in self.loads[:2]], [1, 32])
        self.assertEqual(self.loads[0].kind(), self.loads[1].kind())

    def test_each_once(self):
        """Each subject makes each run once in each repetition."""
        counts = Counter(self.runs)
        self.assertEqual(len(counts), 4 * 8 * 3)
        self.assertEqual(set(counts.values()), {1})

    def test_interleaved(self):
        """What is compared lies side by side."""
        for start in range(0, len(self.runs), 3):
            group = self.runs[start:start + 3]
            self.assertEqual(len({run[:2] for run in group}), 1)
            self.assertEqual({run[2] for run in group}, set(self.names))

    def test_order_changes(self):
        """Nobody is always first, and nobody always follows the same one."""
        first = Counter(run[2] for run in self.runs[::3])
        self.assertEqual(set(first), set(self.names))
        after_a = {self.runs[i + 1][2] for i, run in enumerate(self.runs[:-1])
                   if run[2] == 'a' and i % 3 < 2}
        self.assertEqual(after_a, {'b', 'c'})

    def test_repeatable(self):
        """The same seed, the same order; another seed, another."""
        self.assertEqual(self.runs, self.schedule(1))
        self.assertNotEqual(self.runs, self.schedule(2))

    def test_rounds(self):
        """
        All repetitions once and in order; new sessions for each, but for those
        who have no time or would have to write the disk anew.
        """
        for words, count in (([], 5), (['--quick'], 1), (['--verify'], 1)):
            chosen = options.parse(words)
            chosen.repeat = 5
            found = plan.rounds(chosen)
            self.assertEqual(len(found), count, words)
            self.assertEqual([i for part in found for i in part],
                             list(range(5)), words)

    def test_quick(self):
        """A minute is a minute, also with many runs; too many are refused."""
        subjects_of = [['a', 'b', 'c'], ['a', 'b', 'c', 'fio']]
        for loads in (1, 3, 6):
            chosen = options.parse(['--quick'])
            self.assertTrue(plan.make_quick(chosen, loads, subjects_of))
            self.assertLessEqual(
                plan.total_seconds(chosen, loads, subjects_of), 60)
            self.assertGreaterEqual(chosen.repeat, 3)
            self.assertGreaterEqual(chosen.time_ms, 50)
        self.assertFalse(plan.make_quick(chosen, 60, subjects_of))


class Statistics(unittest.TestCase):
    """Medians, quartiles, ratios."""

    def test_spread(self):
        """Known data."""
        self.assertEqual(report.spread([5, 1, 2, 4, 3]),
                         {'median': 3, 'q1': 2, 'q3': 4, 'n': 5})
        self.assertEqual(report.spread([7]),
                         {'median': 7, 'q1': 7, 'q3': 7, 'n': 1})
        self.assertEqual(report.spread([1, 2])['median'], 1.5)

    def test_ratios_are_paired(self):
        """
        The machine gets slower from run to run: the ratio of the medians would
        be the same, but the ratios' own spread shows that it is certain.
        """
        reference = [result(iops=value) for value in (1000, 500, 250)]
        runs = [result(iops=value) for value in (1500, 750, 375)]
        self.assertEqual(report.ratios(runs, reference)['iops'],
                         {'median': 1.5, 'q1': 1.5, 'q3': 1.5, 'n': 3})

    def test_ratio_is_no_ratio_of_medians(self):
        """One run of the reference among disturbed ones decides nothing."""
        reference = [result(iops=value) for value in (100, 200, 300)]
        runs = [result(iops=value) for value in (300, 200, 150)]
        self.assertEqual(report.ratios(runs, reference)['iops']['median'], 1)
        runs = [result(iops=value) for value in (200, 400, 150)]
        self.assertEqual(report.ratios(runs, reference)['iops']['median'], 2)

    def test_nothing_to_divide_by(self):
        """No notifications at all, and what is not counted."""
        none = {'available': None, 'used': None}
        zero = {'available': 0.0, 'used': 0.0}
        one = [result(notifications_per_request=zero)]
        other = [result(notifications_per_request=none)]
        self.assertIsNone(report.ratios(one, one)['kicks'])
        self.assertIsNone(report.ratios(one, other)['kicks'])
        self.assertIsNone(report.ratios(other, one)['kicks'])
        self.assertIsNone(report.summarize(other)['kicks'])
        self.assertEqual(report.summarize(one)['kicks']['median'], 0)

    def test_unequal_numbers(self):
        """Without a partner there is no pair."""
        with self.assertRaises(ValueError):
            report.ratios([result()], [result(), result()])

    def test_histograms(self):
        """All requests of all runs are in it, in order."""
        runs = [result(histogram=[[10, 1], [30, 2]]),
                result(histogram=[[20, 5], [30, 1]])]
        self.assertEqual(report.merge_histograms(runs),
                         [[10, 1], [20, 5], [30, 3]])


def make_document() -> dict:
    """Two subjects in one cell, as it comes from a file."""
    cell = report.Cell('null-co', LOAD.to_json(), LOAD.title())
    for factor in (1.0, 1.1, 0.9):
        cell.add('ours', result(iops=2e6 * factor, iothread=250.0), 'qtest')
        cell.add('stock', result(iops=1e6 * factor), 'qtest')
    return json.loads(json.dumps({
        'format': report.FORMAT, 'reference': 'stock',
        'subjects': [{'name': 'ours'}, {'name': 'stock'}],
        'cells': [cell.to_json(['ours', 'stock', 'gone'], 'stock')]}))


class Document(unittest.TestCase):
    """The file of results and the table."""

    def setUp(self):
        self.document = make_document()

    def test_cell(self):
        """What the file has of a cell."""
        entry = self.document['cells'][0]['subjects']['ours']
        self.assertEqual(len(entry['runs']), 3)
        self.assertEqual(entry['summary']['iops']['median'], 2e6)
        self.assertEqual(entry['ratio']['iothread_ns']['median'], 0.5)
        self.assertEqual(entry['histogram'], [[1000, 1200], [4000, 300]])
        self.assertNotIn('histogram', entry['runs'][0])

    def test_other_reference(self):
        """Ratios turn round; who is not there is no reference."""
        report.compare_again(self.document, 'ours')
        entry = self.document['cells'][0]['subjects']['stock']
        self.assertEqual(entry['ratio']['iops']['median'], 0.5)
        with self.assertRaises(ValueError):
            report.compare_again(self.document, 'gone')

    def test_table(self):
        """Numbers stand where they belong, and lines fit."""
        text = report.table(self.document)
        ours = next(line for line in text.splitlines()
                    if line.startswith('  ours'))
        self.assertEqual(
            ours.split(), ['ours', '2.000', 'M', '5.0%', '2.00', '250', '0.50',
                           '250', '12', '0.8', '2.0', '3.0', '1.00', '0.500',
                           '0'])
        self.assertLessEqual(max(map(len, text.splitlines())), 100)
        self.assertIn('against stock', text)

    def test_accelerator(self):
        """It stands above the figures, by name if not all have the same."""
        self.assertIn('== null-co (accelerator qtest)\n',
                      report.table(self.document))
        self.document['cells'][0]['accel']['stock'] = 'tcg'
        self.assertIn('== null-co (accelerator qtest: ours; tcg: stock)\n',
                      report.table(self.document))
        del self.document['cells'][0]['accel']
        self.assertIn('== null-co\n', report.table(self.document))

    def test_disks(self):
        """Of several disks each has a line, below that of all."""
        cell = report.Cell('null-co', LOAD.to_json(), LOAD.title())
        for iops in (1000, 3000, 2000):
            disks = [{'requests': 1, 'iops': iops * part,
                      'latency_ns': result()['latency_ns']}
                     for part in (0.25, 0.75)]
            cell.add('ours', result(iops, disks=disks))
            cell.add('other', result(iops, disks=disks[:1]))
        document = {'reference': 'ours', 'subjects': [
            {'name': 'ours'}, {'name': 'other'}],
            'cells': [cell.to_json(['ours', 'other'], 'ours')]}
        lines = [line.split() for line in report.table(document).split('\n')]
        self.assertIn(['disk', '0', '500'], [line[:3] for line in lines])
        self.assertIn(['disk', '1', '1.500', 'k'],
                      [line[:4] for line in lines])
        self.assertEqual(sum(line[:1] == ['disk'] for line in lines), 2)

    def test_instructions(self):
        """A column of their own where they are counted."""
        self.assertNotIn('insns', report.table(self.document))
        for entry in self.document['cells'][0]['subjects'].values():
            entry['summary']['instructions'] = report.spread([1234])
        self.assertIn('1234', report.table(self.document))

    def test_missing_reference(self):
        """No ratios, but all else."""
        cell = report.Cell('null-co', LOAD.to_json(), LOAD.title())
        cell.add('ours', result())
        self.document['cells'] = [cell.to_json(['ours'], 'stock')]
        self.assertIn('1.000 k', report.table(self.document))

    def test_foreign_files(self):
        """Something else than results."""
        for wrong in ([], {}, {'cells': []}, {'cells': [], 'format': 0}):
            with self.assertRaises(ValueError):
                report.check_document(wrong)
        report.check_document(self.document)

    def test_numbers(self):
        """How they are written."""
        self.assertEqual(report.count_text(987), '987')
        self.assertEqual(report.count_text(98765), '98.77 k')
        self.assertEqual(report.count_text(1234567), '1.235 M')
        self.assertEqual(report.rate_text(0.0004), '<.001')
        self.assertEqual(report.micro_text(12345678), '12346')

    @unittest.skipUnless(importlib.util.find_spec('matplotlib'),
                         'matplotlib is not installed')
    def test_plots(self):
        """Both kinds of file for each backend."""
        import plots  # pylint: disable=import-outside-toplevel
        second = copy.deepcopy(self.document['cells'][0])
        second['workload']['depth'] = 1
        del second['subjects']['stock']
        self.document['cells'].append(second)
        with tempfile.TemporaryDirectory() as directory:
            files = plots.draw(self.document, directory)
            self.assertEqual([os.path.basename(path) for path in files],
                             ['null-co.png', 'null-co.svg'])
            for path in files:
                self.assertGreater(os.path.getsize(path), 1000)


class Results(unittest.TestCase):
    """Which results count."""

    def test_good(self):
        """Nothing to complain about."""
        self.assertIsNone(session.result_problem(result(), False))
        self.assertIsNone(session.result_problem(result(verified=3), True))
        self.assertIsNone(session.result_problem(
            result(disks=[{'requests': 100}, {'requests': 400}]), False))

    def test_bad(self):
        """Nothing done, nothing verified, something left out."""
        self.assertTrue(session.result_problem(result(requests=0), False))
        self.assertTrue(session.result_problem(result(verified=0), True))
        self.assertTrue(session.result_problem(result(iops='fast'), False))
        self.assertTrue(session.result_problem(result(iops=-1), False))
        self.assertTrue(session.result_problem(result(histogram=3), False))
        self.assertTrue(session.result_problem(
            result(disks=[{'requests': 499}]), False))
        for name in ('requests', 'iops', 'latency_ns', 'histogram',
                     'cpu_ns_per_request', 'notifications_per_request'):
            broken = result()
            del broken[name]
            self.assertTrue(session.result_problem(broken, False), name)

    def test_plane(self):
        """Who served."""
        on = {'serving': True, 'queues': [{'completed': 60, 'errors': 0},
                                          {'completed': 40, 'errors': 0}]}
        off = {'serving': False, 'queues': [], 'reason': 'a whim'}
        self.assertIsNone(session.plane_problem(on, True, 100))
        self.assertIsNone(session.plane_problem(off, False, 100))
        self.assertIn('a whim', session.plane_problem(off, True, 0))
        self.assertTrue(session.plane_problem(None, True, 0))
        self.assertTrue(session.plane_problem(on, False, 0))
        self.assertTrue(session.plane_problem(on, True, 101))
        on['queues'][1]['errors'] = 1
        self.assertTrue(session.plane_problem(on, True, 100))


class Direct(unittest.TestCase):
    """Whether direct requests were direct."""

    @staticmethod
    def info(completed: int, direct: int, **others) -> dict:
        """As a device says it."""
        return {'queues': [{'completed': completed, 'direct': direct,
                            **others}, {'completed': 0, 'direct': 0}]}

    def test_all(self):
        """Nothing to be told; the serial number is no read."""
        self.assertIsNone(session.direct_note(self.info(1000, 999)))
        self.assertIsNone(session.direct_note({}))

    def test_some(self):
        """How many, and why not all."""
        note = session.direct_note(self.info(
            1000, 250, **{'not-direct': 'a whim'}))
        self.assertIn('25.0%', note)
        self.assertIn('a whim', note)
        self.assertIn('0.0%', session.direct_note({
            'queues': [{'completed': 5}]}))


class Driver(unittest.TestCase):
    """The table of --measure-driver."""

    def test_lines(self):
        """Median and least of the runs; all requests."""
        runs = [result(iops=5e7, driver_ns_per_request=value, requests=1000)
                for value in (7.0, 9.0, 99.0)]
        line = bench_run.driver_lines([LOAD], [runs])[3]
        self.assertTrue(line.startswith(LOAD.title()))
        self.assertEqual(line.removeprefix(LOAD.title()).split(),
                         ['9.0', '7.0', '20.0', '3000'])


READY = 'echo \'{"event":"ready","capacity":2048}\'\n'


class Sessions(unittest.TestCase):
    """Drivers that are none."""

    def setUp(self):
        handle, self.log = tempfile.mkstemp()
        os.close(handle)
        self.addCleanup(os.unlink, self.log)

    def open(self, script: str) -> DriverSession:
        """A session with a shell script for a driver."""
        return DriverSession(['/bin/sh', '-c', script], self.log)

    def test_runs(self):
        """Two runs, each answered, and its end."""
        answer = f"while read line; do echo '{json.dumps(result())}'; done"
        with self.open(READY + answer) as opened:
            self.assertEqual(opened.ready['capacity'], 2048)
            for _ in range(2):
                self.assertEqual(opened.run(['--x', 'a b'], 5)['iops'], 1000)

    def fails(self, script: str, words: str, timeout: float = 5) -> None:
        """The first run of this driver fails with these words."""
        with self.assertRaisesRegex(SessionError, words):
            with self.open(script) as opened:
                opened.run(['--x'], timeout)

    def test_error(self):
        """It says what is wrong, at its start or in a run."""
        error = 'echo \'{"event":"error","message":"a request is lost"}\'\n'
        self.fails(error, 'a request is lost')
        self.fails(READY + 'read line\n' + error, 'a request is lost')

    def test_end(self):
        """It ends without a word, or with its last words in the log."""
        self.fails('exit 3', 'status 3')
        self.fails(READY + 'read line; echo so long >&2; exit 4',
                   'status 4: so long')
        self.fails(READY + 'read line; kill -9 $$', 'signal 9')

    def test_garbage(self):
        """It says something else."""
        self.fails('echo hello', 'hello')
        self.fails(READY + READY + 'read line', 'ready, not result')
        self.fails('echo []', 'strange')
        self.fails(READY + 'echo \'{"event":"result"}\'; read line',
                   'left something out')

    def test_silence(self):
        """It hangs: the run ends all the same, and so does the driver."""
        self.fails(READY + 'read line; read line', 'nothing for', 0.2)

    def test_deaf(self):
        """It does not end when it should: it is made to, with its children."""
        old, session.CLOSE_TIMEOUT = session.CLOSE_TIMEOUT, 0.2
        try:
            opened = self.open(
                'trap "" TERM\nsleep 60 & echo "{\\"event\\":\\"ready\\",'
                '\\"pid\\":$!}"\nwait; sleep 60')
            with opened:
                child = opened.ready['pid']
            self.assertTrue(has_ended(child))
        finally:
            session.CLOSE_TIMEOUT = old

    def test_no_program(self):
        """It cannot be started at all."""
        with self.assertRaises(OSError):
            with DriverSession(['/nowhere/driver'], self.log):
                pass


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or waits for its parent only."""
    for _ in range(100):
        try:
            with open(f'/proc/{pid}/stat', encoding='ascii') as source:
                if source.read().rsplit(')', 1)[1].split()[0] in 'ZX':
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def fio_job() -> dict:
    """As fio reports 300 reads and 100 writes."""
    def direction(count: int, mean: float, bins: dict) -> dict:
        return {'total_ios': count, 'runtime': 200 if count else 0,
                'io_bytes': count * 4096,
                'lat_ns': {'mean': mean, 'N': count, 'max': 9000,
                           'bins': bins}}
    return {'error': 0, 'usr_cpu': 10.0, 'sys_cpu': 40.0, 'job_runtime': 200,
            'read': direction(300, 1000, {'1000': 300}),
            'write': direction(100, 2000, {'1500': 98, '8000': 2})}


class Fio(unittest.TestCase):
    """fio's results in the driver's form."""

    def test_mixed(self):
        """Both directions count."""
        converted = fio.convert(fio_job())
        self.assertIsNone(session.result_problem(converted, False))
        self.assertEqual(converted['iops'], 2000)
        self.assertEqual(converted['latency_ns'], {
            'mean': 1250, 'p50': 1000, 'p99': 1500, 'p999': 8000,
            'max': 9000})
        # Half of 200 ms for 400 requests.
        self.assertEqual(converted['cpu_ns_per_request']['iothread'], 250_000)

    def test_read_only(self):
        """The other direction is empty."""
        job = fio_job()
        job['write'].update(total_ios=0, runtime=0, io_bytes=0)
        self.assertEqual(fio.convert(job)['requests'], 300)

    def test_failed(self):
        """An error, or nothing done."""
        for change in ({'error': 5}, {'read': {'total_ios': 0},
                                      'write': {'total_ios': 0}}):
            with self.assertRaises(SessionError):
                fio.convert({**fio_job(), **change})


class Commands(unittest.TestCase):
    """QEMU's command lines."""

    def nodes(self, name: str, part=None, **image) -> list:
        """The graph of a backend."""
        wanted = Options(backends=[name], subjects=['ours'])
        backend = subjects.make_backend(
            name, None if name == 'null-co'
            else Image('/f', 64 << 20, **image), wanted)
        return subjects.nodes(backend, wanted, part)

    def test_chain(self):
        """Each node stands on the one before; the last is the disk's."""
        for name in options.BACKENDS:
            for part in (None, (1 << 20, 1 << 20)):
                chain = self.nodes(name, part)
                self.assertEqual(chain[-1]['node-name'], 'disk0-node')
                for lower, upper in zip(chain, chain[1:]):
                    self.assertEqual(upper['file'], lower['node-name'])

    def test_backends(self):
        """What each name means."""
        direct = self.nodes('direct-native')[0]
        self.assertEqual((direct['aio'], direct['cache']),
                         ('native', {'direct': True}))
        cached = self.nodes('file-threads')[0]
        self.assertEqual((cached['aio'], cached['cache']),
                         ('threads', {'direct': False}))
        self.assertEqual([node['driver'] for node in self.nodes('throttled')],
                         ['file', 'raw', 'throttle'])
        self.assertEqual([node['driver'] for node in self.nodes('qcow2')],
                         ['file', 'qcow2'])

    def test_read_only(self):
        """A disk that must not be written to is not open for writing."""
        for node in self.nodes('direct-threads', own=True, read_only=True,
                               is_device=True):
            self.assertTrue(node['read-only'])
            self.assertIn(node['driver'], ('host_device', 'raw'))

    def test_locks(self):
        """Only for images of our own QEMU's locks are off."""
        for name in options.BACKENDS:
            self.assertEqual('locking' in self.nodes(name)[0],
                             name == 'qcow2')

    def test_slices(self):
        """Parts do not overlap, and fit."""
        parts = [subjects.slice_of(100 << 20, number, 3)
                 for number in range(3)]
        ends = [offset + size for offset, size in parts]
        self.assertEqual([offset for offset, _ in parts], [0, *ends[:-1]])
        self.assertLessEqual(ends[-1], 100 << 20)

    def test_device(self):
        """One IOThread by name, several by a mapping."""
        one = Options(backends=[], subjects=['ours'])
        two = Options(backends=[], subjects=['ours'], queues=2, iothreads=2)
        off = subject('stock', properties=('x-data-plane=off',))
        self.assertIn('iothread=io0', subjects.device(off, one))
        self.assertIn('x-data-plane=off', subjects.device(off, one))
        self.assertIn('share-rw=on', subjects.device(off, one))
        several = json.loads(subjects.device(off, two))
        self.assertEqual(several['iothread-vq-mapping'],
                         [{'iothread': 'io0'}, {'iothread': 'io1'}])
        self.assertEqual(several['x-data-plane'], 'off')
        self.assertIs(several['share-rw'], True)
        off = subject('ours', properties=('x-direct=off',))
        self.assertIn('x-direct=off', subjects.device(off, one))
        self.assertIs(json.loads(subjects.device(off, two))['x-direct'], False)

    def test_direct(self):
        """What is on or off is said, whatever a binary's default is."""
        known = 'x-data-plane=<> x-direct=<>'
        self.assertEqual([subjects.properties_of(name, known)
                          for name in ('ours', 'direct', 'fixed', 'stock')],
                         [('x-direct=off',), ('x-direct=on',),
                          ('x-direct=on', 'x-fixed-buffers=on'),
                          ('x-data-plane=off',)])
        self.assertEqual(subjects.properties_of('ours', 'x-data-plane=<>'), ())

    def test_accelerator(self):
        """One for all, and a clock for a filter that needs one."""
        some = Options(backends=[], subjects=['ours'])
        file = subjects.make_backend('file-io_uring', Image('/f', 1), some)
        slow = subjects.make_backend('throttled', Image('/f', 1), some)
        both = [subject('a'), subjects.Subject('s', 'vhost-user', '/s')]
        self.assertEqual(subjects.accelerator(both, file), 'qtest')
        self.assertEqual(subjects.accelerator(both, slow), 'tcg')
        both.append(subject('b', qtest=False))
        self.assertEqual(subjects.accelerator(both, file), 'tcg')
        command = subjects.qemu_command(both[0], file, some, '/q', accel='tcg')
        self.assertEqual(command[1:3], ['-accel', 'tcg'])

    def test_spdk(self):
        """SPDK gets what it needs, and only it."""
        words = {'--hold', '--huge-pages', '--no-event-idx'}
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, 's')
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                some = options.parse(['--spdk-socket', path, '--vhost-user',
                                      f'qsd={path}', '--subjects', 'fio'])
                found, _ = subjects.find(some)
        for those in found[-2:]:
            command = subjects.driver_command(those, some, [0, 1], [])
            self.assertEqual(words & set(command),
                             words if those.name == 'spdk' else set())
            self.assertIn(path, command)

    def test_no_back_end(self):
        """A socket that is none."""
        some = options.parse(['--spdk-socket', '/dev/null', '--subjects',
                              'fio'])
        with self.assertRaises(subjects.SubjectError):
            subjects.find(some)

    def test_idle_disks(self):
        """Each has a place of its own, and an IOThread that there is."""
        wanted = Options(backends=[], subjects=['ours'], queues=2, iothreads=2,
                         idle_disks=17, idle_queues=3)
        words = subjects.idle_disks(subject('ours'), wanted)
        devices = [dict(word.split('=', 1) for word in value.split(',')[1:])
                   for option, value in zip(words[::2], words[1::2])
                   if option == '-device']
        self.assertEqual(len(devices), 17)
        self.assertEqual(devices[0]['addr'], '8.0')
        self.assertEqual(devices[16]['addr'], 'a.0')
        self.assertEqual(len({device['addr'] for device in devices}), 17)
        self.assertEqual({device['iothread'] for device in devices},
                         {'io0', 'io1'})
        self.assertEqual({device['num-queues'] for device in devices}, {'3'})
        alone = subject('alone', idle=False)
        self.assertEqual(subjects.idle_disks(alone, wanted), [])
        self.assertNotIn('--idle-disks',
                         subjects.driver_command(alone, wanted, [], []))
        self.assertIn('--idle-disks', subjects.driver_command(
            subject('ours'), wanted, [], []))

    def test_disks(self):
        """Each has nodes, a place and an IOThread, in front of idle ones."""
        wanted = Options(backends=[], subjects=['ours'], disks=3, iothreads=2,
                         idle_disks=1, throttle_iops=7)
        backend = subjects.make_backend('throttled', Image('/f', 96 << 20),
                                        wanted)
        words = subjects.qemu_command(subject('ours'), backend, wanted, '/q')
        devices = [dict(word.split('=', 1) for word in value.split(',')[1:])
                   for option, value in zip(words, words[1:])
                   if option == '-device']
        self.assertEqual([device['drive'] for device in devices],
                         ['disk0-node', 'disk1-node', 'disk2-node', 'idle0'])
        self.assertEqual([device.get('addr') for device in devices],
                         [None, '8.0', '8.1', '8.2'])
        self.assertEqual([device['iothread'] for device in devices],
                         ['io0', 'io1', 'io0', 'io0'])
        nodes = [json.loads(value) for option, value in zip(words, words[1:])
                 if option == '-blockdev' and 'throttle' in value]
        self.assertEqual([node['throttle-group'] for node in nodes],
                         ['tg0', 'tg1', 'tg2'])
        self.assertIn('--disks', subjects.driver_command(
            subject('ours'), wanted, [], words))

    def test_parts_of_disks(self):
        """Who is verified is alone, also with a subject's other disks."""
        wanted = Options(backends=[], subjects=['ours'], disks=2, verify=True)
        backend = subjects.make_backend('file-threads', Image('/f', 96 << 20),
                                        wanted)
        for part in (None, (8 << 20, 8 << 20)):
            start, size = part or (0, 96 << 20)
            first, second = (subjects.disk_part(backend, wanted, part, disk)
                             for disk in (0, 1))
            self.assertEqual(first, (start, size // 2))
            self.assertEqual(second, (start + size // 2, size // 2))
        wanted.verify = False
        self.assertIsNone(subjects.disk_part(backend, wanted, None, 1))

    def test_left_out(self):
        """Who cannot be measured, and where."""
        two = Options(backends=[], subjects=['ours'], queues=2, iothreads=2)
        file = subjects.make_backend('file-io_uring', Image('/f', 1), two)
        null = subjects.make_backend('null-co', None, two)
        bound = subjects.Subject('fio', 'fio', '/bin/false')
        self.assertIsNone(subjects.left_out(bound, file, two))
        self.assertTrue(subjects.left_out(bound, null, two))
        self.assertTrue(subjects.left_out(subject('old', mapping=False), file,
                                          two))
        self.assertIsNone(subjects.left_out(subject('new'), file, two))
        two.idle_disks = 1
        other = subjects.Subject('other', 'vhost-user', '/s')
        self.assertTrue(subjects.left_out(other, file, two))
        disks = Options(backends=[], subjects=['ours'], disks=2, iothreads=2)
        self.assertTrue(subjects.left_out(other, file, disks))
        self.assertTrue(subjects.left_out(bound, file, disks))
        self.assertIsNone(subjects.left_out(subject('old', mapping=False),
                                            file, disks))


if __name__ == '__main__':
    unittest.main()
