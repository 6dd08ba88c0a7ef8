# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
The command line of scripts/bench: what can be asked for, the defaults, and
what contradicts what.

Looks at the words only, so that a mistake is told before anything is built;
host.py looks whether the host can do what they ask for.
"""

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass, field
from typing import Callable, Dict, List, NoReturn, Optional, Tuple

PROGRAM = 'bench'

BACKENDS = {
    'null-co': 'completes at once, no file: what the device itself costs',
    'file-io_uring': 'raw file in the page cache, through io_uring',
    'file-threads': 'raw file in the page cache, through a thread pool',
    'direct-io_uring': 'raw file with O_DIRECT, through io_uring',
    'direct-native': 'raw file with O_DIRECT, through Linux AIO',
    'direct-threads': 'raw file with O_DIRECT, through a thread pool',
    'qcow2': 'qcow2 image in the page cache, all allocated, through io_uring',
    'throttled': 'file-io_uring below a throttle filter',
}
BACKEND_GROUPS = {
    'file': ['file-io_uring', 'file-threads'],
    'direct': ['direct-io_uring', 'direct-native', 'direct-threads'],
    'all': list(BACKENDS),
}
SUBJECTS = {
    'ours': 'this project\'s QEMU, requests through the block layer',
    'direct': 'the same binary with x-direct=on: past its coroutines',
    'fixed': 'direct, with x-fixed-buffers=on',
    'stock': 'the same binary with x-data-plane=off',
    'debian': '/usr/bin/qemu-system-x86_64, if it is installed',
    'fio': 'no QEMU: fio with io_uring on the same file, the bound',
    'alone': 'as ours, but without --idle-disks',
}
#: those that are measured when they are asked for
NOT_BY_DEFAULT = ('fixed', 'alone')
RW = ('read', 'write', 'mixed')
PATTERNS = ('random', 'sequential')
WAITS = ('poll', 'notify')

#: a limit so high that the throttle filter never holds a request back
NO_LIMIT = 10 ** 9
#: what the PC that the driver uses has below its hole, less the driver's start
MEMORY_MIB = 2048
#: guest memory of a request beside its data, with what is lost to alignment
REQUEST_BYTES = 8192
#: the driver keeps the expected content of what it verifies
VERIFY_MIB = 1024
QUEUE_SIZE_MAX = 1024
#: of all disks, what the driver can have
QUEUES_MAX = 1024
#: what slots from 8 on have room for; and what rings take, per queue
PLACES = 192
IDLE_QUEUE_BYTES = 8192
QUICK_SECONDS = 60


class UsageError(Exception):
    """The command line is wrong, in words for the user."""


@dataclass
class Options:
    """What is to be measured, all defaults filled in."""
    backends: List[str]
    subjects: List[str]
    #: the user's own: (name, path)
    qemu: List[Tuple[str, str]] = field(default_factory=list)
    vhost_user: List[Tuple[str, str]] = field(default_factory=list)
    spdk: List[Tuple[str, str]] = field(default_factory=list)
    reference: str = 'stock'
    reference_given: bool = False

    rw: List[str] = field(default_factory=lambda: ['read'])
    pattern: List[str] = field(default_factory=lambda: ['random'])
    bs: List[int] = field(default_factory=lambda: [4096])
    depth: List[int] = field(default_factory=lambda: [1, 32, 128])
    wait: List[str] = field(default_factory=lambda: ['poll'])
    write_percent: int = 30

    disks: int = 1
    #: of each disk
    queues: int = 1
    iothreads: int = 1
    #: 0: as many entries as the depth needs, at least QEMU's 256
    queue_size: int = 0
    indirect: bool = True
    event_idx: bool = True
    ring: str = 'split'
    in_order: bool = False
    poll_max_ns: int = 32768
    idle_disks: int = 0
    idle_queues: int = 4

    time_ms: int = 500
    warmup_ms: int = 50
    repeat: int = 5
    quick: bool = False
    seed: int = 1
    #: CPUs of driver and IOThreads; None: to be chosen, empty: no pinning
    pin: Optional[List[int]] = None

    disk: Optional[str] = None
    overwrite: bool = False
    size_mib: int = 1024
    throttle_iops: int = NO_LIMIT
    verify: bool = False

    json: Optional[str] = None
    plots: Optional[str] = None
    show: Optional[str] = None
    self_test: bool = False
    measure_driver: bool = False

    def __post_init__(self) -> None:
        if not self.queue_size:
            self.queue_size = 256
            while self.queue_size < self.entries():
                self.queue_size *= 2

    def entries(self) -> int:
        """
        Entries of a queue that the depth needs: header, data, and status, or
        one that is indirect.
        """
        return max(self.depth) * (1 if self.indirect else 3)

    def names(self) -> List[str]:
        """All subjects, in the order of the table."""
        return (self.subjects + [name for name, _ in self.qemu]
                + [name for name, _ in self.vhost_user + self.spdk])

    def writes(self) -> bool:
        """Whether anything is written to the disk."""
        return self.verify or self.rw != ['read']

    def memory_mib(self) -> int:
        """Guest memory that the driver needs."""
        request = max(self.bs) + REQUEST_BYTES
        idle = self.idle_disks * self.idle_queues * IDLE_QUEUE_BYTES
        requests = max(self.depth) * self.queues * self.disks
        return max(128, 64 + (requests * request + idle >> 20))


# ---- the values

def number(low: int, high: int) -> Callable[[str], int]:
    """A parser for whole numbers from low to high."""
    def parse(word: str) -> int:
        if not re.fullmatch(r'[0-9]{1,18}', word) \
                or not low <= int(word) <= high:
            raise argparse.ArgumentTypeError(
                f"'{word}' is not a number from {low} to {high}")
        return int(word)
    return parse


def block_size(word: str) -> int:
    """Bytes, as 512, 4k, 64k, 1m."""
    match = re.fullmatch(r'([0-9]{1,8})([kKmM]?)', word)
    size = 0
    if match:
        size = int(match[1]) << {'': 0, 'k': 10, 'm': 20}[match[2].lower()]
    if size < 512 or size % 512 or size > 1 << 20:
        raise argparse.ArgumentTypeError(
            f"'{word}' is not a block size: a multiple of 512 bytes up to "
            '1 MiB, such as 512, 4k, 64k')
    return size


def word_of(words) -> Callable[[str], str]:
    """A parser for one of some words."""
    def parse(word: str) -> str:
        if word not in words:
            raise argparse.ArgumentTypeError(
                f"'{word}' is none of " + ', '.join(words))
        return word
    return parse


def list_of(parse: Callable, groups: Optional[Dict[str, List[str]]] = None
            ) -> Callable[[str], list]:
    """A parser for a list with commas; each value counts once."""
    def parse_list(text: str) -> list:
        words: List[str] = []
        for word in text.split(','):
            words += (groups or {}).get(word, [word])
        return list(dict.fromkeys(parse(word) for word in words))
    return parse_list


def backend(word: str) -> str:
    """A backend's name."""
    if word == 'file-native':
        raise argparse.ArgumentTypeError(
            'QEMU takes aio=native only with O_DIRECT: use direct-native')
    return word_of([*BACKENDS, *BACKEND_GROUPS])(word)


def spdk_path(text: str) -> Tuple[str, str]:
    """[NAME=]PATH; the default name is spdk."""
    return named_path(f'spdk={text}' if text and '=' not in text else text)


def named_path(text: str) -> Tuple[str, str]:
    """[NAME=]PATH; the default name is the last part of PATH."""
    match = re.fullmatch(r'([A-Za-z0-9._-]+)=(.+)', text)
    name, path = match.groups() if match else (
        re.sub(r'[^A-Za-z0-9._-]', '-', text.rstrip('/').rsplit('/', 1)[-1]),
        text)
    if not path or not name:
        raise argparse.ArgumentTypeError(f"'{text}' names no path")
    return name, path


# ---- the words

class Parser(argparse.ArgumentParser):
    """Complains in the project's form."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix('argument '))


def table_of(words: Dict[str, str]) -> str:
    """For the end of the help."""
    return '\n'.join(f'  {name:17}{text}' for name, text in words.items())


DESCRIPTION = """\
Measures virtio-blk at native speed: a driver of our own works the rings of a
disk in shared memory, no guest runs. All subjects are measured side by side,
interleaved, and compared. Nothing has to be prepared; what is there already is
not made again."""

EPILOG = f"""\
Subjects
{table_of(SUBJECTS)}

Backends
{table_of(BACKENDS)}
  {'file, direct, all':19}groups of these

Values with commas are lists: everything is measured with each of them.

Exit status: 0 if all was measured, 1 if a request was lost, stalled, failed or
carried wrong data, or the data plane did not serve (or something could not be
built), 2 for a command line or a host that cannot work."""


def add_what(parser: argparse.ArgumentParser) -> None:
    """Options: who is measured, and on what."""
    group = parser.add_argument_group('What is measured')
    add = group.add_argument
    add('--subjects', metavar='LIST', type=list_of(word_of(list(SUBJECTS))),
        help='default: ' + ','.join(name for name in SUBJECTS
                                    if name not in NOT_BY_DEFAULT)
        + '; with --idle-disks alone, too')
    add('--qemu', metavar='[NAME=]PATH', action='append', type=named_path,
        help='one more subject: any qemu-system-x86_64; may be repeated')
    add('--vhost-user', metavar='[NAME=]SOCKET', action='append',
        type=named_path,
        help='one more subject: a vhost-user-blk back-end with a disk of its '
        'own, as of qemu-storage-daemon or SPDK; may be repeated. It is not '
        'pinned')
    add('--spdk-socket', metavar='[NAME=]SOCKET', action='append',
        dest='spdk', type=spdk_path,
        help='likewise, of a back-end that polls all the time and has no '
        "EVENT_IDX, as SPDK's target: driven without EVENT_IDX from guest "
        'memory of huge pages, and stopped while the others are measured')
    add('--reference', metavar='NAME',
        help='the subject that the others are compared with (default: stock)')
    add('--backends', metavar='LIST', type=list_of(backend, BACKEND_GROUPS),
        help='default: null-co,file-io_uring; with --disk direct-io_uring')
    add('--disk', metavar='FILE',
        help='a raw image or block device of your own in place of the test '
        'file. It is only read, unless --overwrite is given')
    add('--overwrite', action='store_true', default=None,
        help='what is on --disk or behind --vhost-user or --spdk-socket may '
        'be OVERWRITTEN')
    add('--size', metavar='MIB', type=number(16, 1 << 20), dest='size_mib',
        help='size of the test files, in build/bench/disks (default: 1024)')
    add('--throttle-iops', metavar='N', type=number(1, NO_LIMIT),
        help='limit of the backend throttled (default: one that is never '
        'reached)')


def add_load(parser: argparse.ArgumentParser) -> None:
    """Options: the driver's requests."""
    group = parser.add_argument_group('Load')
    add = group.add_argument
    add('--depth', metavar='LIST', type=list_of(number(1, QUEUE_SIZE_MAX)),
        help='requests in flight per queue (default: 1,32,128)')
    add('--bs', metavar='LIST', type=list_of(block_size),
        help='block sizes (default: 4k)')
    add('--rw', metavar='LIST', type=list_of(word_of(RW)),
        help='read, write, mixed (default: read)')
    add('--write-percent', metavar='N', type=number(1, 99),
        help='writes among mixed (default: 30)')
    add('--pattern', metavar='LIST', type=list_of(word_of(PATTERNS)),
        help='random, sequential (default: random)')
    add('--wait', metavar='LIST', type=list_of(word_of(WAITS)),
        help='how the driver waits: poll the used ring, or sleep until it is '
        'notified (default: poll)')
    add('--verify', action='store_true', default=None,
        help='compare all data that is read with what was written. Takes '
        "the driver's time: not for comparing speed")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Options: the device."""
    group = parser.add_argument_group('Device')
    add = group.add_argument
    add('--disks', metavar='N', type=number(1, 1 + PLACES),
        help='disks of each QEMU that are all worked at once, each with the '
        'queues and the depth that are given; figures are those of all, and '
        'of each (default: 1)')
    add('--queues', metavar='N', type=number(1, 64),
        help='of each disk (default: 1)')
    add('--iothreads', metavar='N', type=number(1, 16),
        help='IOThreads that share the queues, or, of several disks, the disks '
        '(default: 1)')
    add('--queue-size', metavar='N', type=number(2, QUEUE_SIZE_MAX),
        help='entries of a queue, a power of two (default: 256, or as many '
        'as --depth needs)')
    add('--ring', metavar='FORMAT', type=word_of(('split', 'packed')),
        help='split or packed (default: split)')
    add('--in-order', action='store_true', default=None,
        help='negotiate VIRTIO_F_IN_ORDER')
    add('--no-indirect', dest='indirect', action='store_false', default=None,
        help='without indirect descriptors')
    add('--no-event-idx', dest='event_idx', action='store_false',
        default=None, help='without EVENT_IDX')
    add('--poll-max-ns', metavar='N', type=number(0, 10 ** 9),
        help='how long an IOThread polls before it sleeps; 0: not at all '
        "(default: 32768, QEMU's own)")
    add('--idle-disks', metavar='N', type=number(1, PLACES),
        help='disks beside them on the same IOThreads, which a driver has '
        'started and makes no request of')
    add('--idle-queues', metavar='N', type=number(1, 64),
        help='queues of each of them (default: 4)')


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Options: how it is measured."""
    group = parser.add_argument_group('Runs')
    add = group.add_argument
    add('--time', metavar='MS', type=number(10, 600_000), dest='time_ms',
        help='duration of a run (default: 500)')
    add('--warmup', metavar='MS', type=number(0, 600_000), dest='warmup_ms',
        help='before each run, not counted (default: 50)')
    add('--repeat', metavar='N', type=number(1, 1000),
        help='runs of each kind (default: 5)')
    add('--quick', action='store_true', default=None,
        help=f'at most {QUICK_SECONDS} seconds for everything, once all is '
        'built: chooses --time and --repeat')
    add('--seed', metavar='N', type=number(0, 1 << 32),
        help='of addresses and of the order of the runs (default: 1)')
    add('--pin', metavar='CPU,CPU[,CPU...]',
        type=list_of(number(0, 4095)),
        help='CPU of the driver, then those of the IOThreads (default: the '
        'first and those that follow, if there are two)')
    add('--no-pin', action='store_true', default=None, help='no pinning')


def add_results(parser: argparse.ArgumentParser) -> None:
    """Options: what becomes of the results, and the rest."""
    group = parser.add_argument_group('Results')
    add = group.add_argument
    add('--json', metavar='FILE',
        help='default: build/bench/results/DATE.json')
    add('--plots', metavar='DIR',
        help='draw PNG and SVG files into DIR: IOPS and CPU per request over '
        'depth, distribution of latencies')
    add('--show', metavar='FILE',
        help='measure nothing: show FILE, which --json has written, again')
    group = parser.add_argument_group('Other')
    add = group.add_argument
    add('--self-test', action='store_true', default=None,
        help='no measurement: each backend with verification, shortly')
    add('--measure-driver', action='store_true', default=None,
        help='no QEMU: what the driver itself takes per request, against a '
        'device within its thread that only works on memory; with the options '
        'of the load and of the device')
    add('--no-build', action='store_true', default=None,
        help='trust that build/ is up to date')
    add('--help', '-h', action='help', help='this text')


def make_parser() -> Parser:
    """The parser; its defaults are None, so that it shows what is given."""
    parser = Parser(prog='scripts/bench', usage='scripts/bench [OPTION]...',
                    description=DESCRIPTION, epilog=EPILOG, add_help=False,
                    allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add_what(parser)
    add_load(parser)
    add_device(parser)
    add_runs(parser)
    add_results(parser)
    return parser


# ---- contradictions

def check_alone(given: dict) -> None:
    """Options that leave nothing for others to say."""
    company = {'self_test': {'no_build'},
               'measure_driver': {
                   'no_build', 'depth', 'bs', 'rw', 'write_percent', 'pattern',
                   'queues', 'queue_size', 'ring', 'in_order', 'indirect',
                   'event_idx', 'time_ms', 'warmup_ms', 'repeat', 'seed',
                   'pin', 'no_pin'},
               'show': {'plots', 'reference', 'no_build'}}
    for option, allowed in company.items():
        if option in given:
            others = sorted(set(given) - allowed - {option})
            if others:
                raise UsageError(f'{flag(option)} does not go with '
                                 + ', '.join(map(flag, others)))


def flag(name: str) -> str:
    """What the user types for it."""
    special = {'size_mib': 'size', 'time_ms': 'time', 'warmup_ms': 'warmup',
               'indirect': 'no-indirect', 'event_idx': 'no-event-idx',
               'spdk': 'spdk-socket'}
    return '--' + special.get(name, name).replace('_', '-')


def check_pairs(given: dict) -> None:
    """Options that exclude or need one another."""
    for one, other in (('quick', 'time_ms'), ('quick', 'warmup_ms'),
                       ('quick', 'repeat'), ('pin', 'no_pin'),
                       ('disk', 'size_mib')):
        if one in given and other in given:
            raise UsageError(
                f'{flag(one)} and {flag(other)} contradict each other')
    if 'overwrite' in given \
            and not {'disk', 'vhost_user', 'spdk'} & set(given):
        raise UsageError('--overwrite belongs to --disk, --vhost-user or '
                         '--spdk-socket')
    if 'idle_queues' in given and 'idle_disks' not in given:
        raise UsageError('--idle-queues needs --idle-disks')
    if 'alone' in given.get('subjects', []) and 'idle_disks' not in given:
        raise UsageError('the subject alone needs --idle-disks')
    if 'write_percent' in given and 'mixed' not in given.get('rw', []):
        raise UsageError('--write-percent needs --rw mixed')


def check_device(options: Options) -> None:
    """What no device can be like."""
    if options.disks == 1 and options.iothreads > options.queues:
        raise UsageError(f'--iothreads {options.iothreads}: there would be '
                         'IOThreads without a queue; give as many --queues')
    if options.iothreads > options.disks > 1:
        raise UsageError(f'--iothreads {options.iothreads}: there would be '
                         'IOThreads without a disk; give as many --disks')
    if options.disks - 1 + options.idle_disks > PLACES:
        raise UsageError(f'--disks and --idle-disks: there is room for '
                         f'{1 + PLACES} in all')
    if options.disks * options.queues > QUEUES_MAX:
        raise UsageError('--disks and --queues: the driver can have '
                         f'{QUEUES_MAX} queues in all')
    if options.queue_size & (options.queue_size - 1):
        raise UsageError(f'--queue-size {options.queue_size} is not a power '
                         'of two')
    size = min(options.queue_size, QUEUE_SIZE_MAX)
    if options.entries() > size:
        raise UsageError(f'--depth {max(options.depth)} needs '
                         f'{options.entries()} entries of a queue; there are '
                         f'{size}')
    if options.memory_mib() > MEMORY_MIB:
        raise UsageError('depth, block size, queues, disks together need more '
                         f'than {MEMORY_MIB >> 10} GiB of guest memory: use '
                         'less of one')


def check_pin(options: Options) -> None:
    """Who shares a CPU with the driver measures the driver."""
    if not options.pin:
        return
    if len(options.pin) < 2:
        raise UsageError('--pin needs the CPU of the driver and another one '
                         'for the IOThread, such as --pin 0,1')
    if len(options.pin) > 1 + options.iothreads:
        raise UsageError(f'--pin names {len(options.pin) - 1} CPUs for '
                         f'{options.iothreads} IOThreads')


def check_disk(options: Options, given: dict) -> None:
    """What is read and written must be the user's wish."""
    own = options.disk or options.vhost_user or options.spdk
    if own and options.writes() and not options.overwrite:
        raise UsageError(
            '--rw write, --rw mixed and --verify overwrite what is on --disk '
            'or behind --vhost-user or --spdk-socket: add --overwrite if that '
            'may be lost')
    if options.disk is None:
        return
    if 'qcow2' in options.backends:
        raise UsageError('--disk takes the place of a raw file: not with the '
                         'backend qcow2')
    if options.backends == ['null-co']:
        raise UsageError('--disk is not used by the backend null-co')


def check_verify(options: Options, given: dict) -> None:
    """What can be verified."""
    if not options.verify:
        return
    if 'null-co' in options.backends:
        raise UsageError('--verify: null-co keeps no data')
    if 'fio' in given.get('subjects', []):
        raise UsageError('--verify does not go with the subject fio')


def check_names(options: Options) -> None:
    """Names must tell the subjects apart."""
    names = options.names()
    for name in names:
        if names.count(name) > 1 or (name in SUBJECTS
                                     and name not in options.subjects):
            raise UsageError(f"more than one subject would be called '{name}'"
                             ': give another name, as --qemu NAME=PATH')
    if options.show is None and options.reference not in names:
        raise UsageError(f"--reference {options.reference} is none of the "
                         'subjects ' + ', '.join(names))
    if names == ['fio'] and options.backends == ['null-co']:
        raise UsageError('fio needs a file: not with the backend null-co')


def check_throttle(options: Options, given: dict) -> None:
    """A limit that nobody would look at."""
    if 'throttle_iops' in given and 'throttled' not in options.backends:
        raise UsageError('--throttle-iops needs --backends throttled')


# ---- all of it

def default_backends(given: dict) -> List[str]:
    """Those that suit the other options."""
    if 'disk' in given:
        return ['direct-io_uring']
    if 'throttle_iops' in given:
        return ['throttled']
    if 'verify' in given:
        return ['file-io_uring']
    return ['null-co', 'file-io_uring']


def fill_in(given: dict) -> Options:
    """The options, with defaults where nothing is given."""
    names = {entry.name for entry in dataclasses.fields(Options)}
    values = {name: value for name, value in given.items() if name in names}
    values.setdefault('backends', default_backends(given))
    subjects = [name for name in SUBJECTS
                if not (name == 'fio' and 'verify' in given)
                and (name not in NOT_BY_DEFAULT
                     or name == 'alone' and 'idle_disks' in given)]
    values.setdefault('subjects', subjects)
    if 'no_pin' in given:
        values['pin'] = []
    options = Options(**values, reference_given='reference' in given)
    if not options.reference_given and 'stock' not in options.names():
        options.reference = options.names()[0]
    if not options.reference_given and 'alone' in options.subjects:
        options.reference = 'alone'
    return options


def parse(words: List[str]) -> Options:
    """
    :raise UsageError: if the words are wrong or contradict each other.
    """
    given = {name: value
             for name, value in vars(make_parser().parse_args(words)).items()
             if value is not None}
    check_alone(given)
    check_pairs(given)
    options = fill_in(given)
    check_names(options)
    check_device(options)
    check_pin(options)
    check_disk(options, given)
    check_verify(options, given)
    check_throttle(options, given)
    return options


def complain(text: str) -> None:
    """The line that goes with exit status 2."""
    print(f'{PROGRAM}: {text} (see scripts/bench --help)', file=sys.stderr)
