# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
What the runs mean: medians, spread, ratios to the reference, and the table.

Pure: works on the results of runs, which are the driver's JSON objects. The
document that it makes is what --json writes and --show reads.

Ratios are paired: a run is compared with the reference's run of the same
repetition, which was made within seconds of it, and the median of these
ratios is what counts. So a machine that gets slower meanwhile does not matter.
"""

import statistics
from typing import Callable, Dict, List, Optional

FORMAT = 1

Result = dict
Metric = Callable[[Result], Optional[float]]


def at(*path: str) -> Metric:
    """Reads a value out of a result."""
    def read(result: Result) -> Optional[float]:
        value = result
        for key in path:
            value = value.get(key) if value is not None else None
        return value
    return read


METRICS: Dict[str, Metric] = {
    'iops': at('iops'),
    'mb_per_second': at('mb_per_second'),
    'iothread_ns': at('cpu_ns_per_request', 'iothread'),
    'process_ns': at('cpu_ns_per_request', 'process'),
    'mean_ns': at('latency_ns', 'mean'),
    'p50_ns': at('latency_ns', 'p50'),
    'p99_ns': at('latency_ns', 'p99'),
    'p999_ns': at('latency_ns', 'p999'),
    'max_ns': at('latency_ns', 'max'),
    'kicks': at('notifications_per_request', 'available'),
    'interrupts': at('notifications_per_request', 'used'),
    'driver_ns': at('driver_ns_per_request'),
    'instructions': at('instructions_per_request'),
}


# ---- statistics

def spread(values: List[float]) -> dict:
    """Median and quartiles."""
    if len(values) == 1:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return {'median': statistics.median(values), 'q1': low, 'q3': high,
            'n': len(values)}


def summarize(runs: List[Result]) -> Dict[str, Optional[dict]]:
    """Each metric over the repetitions; None for what is not measured."""
    summary = {}
    for name, metric in METRICS.items():
        values = [metric(run) for run in runs]
        summary[name] = None if not values or None in values \
            else spread(values)
    return summary


def ratios(runs: List[Result], reference: List[Result]
           ) -> Dict[str, Optional[dict]]:
    """Each metric against the reference's, by repetition."""
    if len(runs) != len(reference):
        raise ValueError('not as many runs as of the reference')
    summary = {}
    for name, metric in METRICS.items():
        pairs = [(metric(run), metric(other))
                 for run, other in zip(runs, reference)]
        usable = pairs and all(value is not None and other
                               for value, other in pairs)
        summary[name] = spread([value / other for value, other in pairs]) \
            if usable else None
    return summary


#: what is told of each of several disks
DISK_METRICS = ('iops', 'p50_ns', 'p99_ns', 'p999_ns')


def summarize_disks(runs: List[Result]) -> List[Dict[str, dict]]:
    """DISK_METRICS of each disk over the repetitions; empty if there is one."""
    disks = list(zip(*(run.get('disks', []) for run in runs)))
    if len(disks) < 2:
        return []
    return [{name: spread([METRICS[name](run) for run in of_disk])
             for name in DISK_METRICS} for of_disk in disks]


def merge_histograms(runs: List[Result]) -> List[List[float]]:
    """All requests of a cell: [latency in ns, how many] in order."""
    merged: Dict[float, int] = {}
    for run in runs:
        for latency, count in run['histogram']:
            merged[latency] = merged.get(latency, 0) + count
    return [[latency, merged[latency]] for latency in sorted(merged)]


# ---- the document

class Cell:
    """The runs of all subjects with one workload on one backend."""

    def __init__(self, backend: str, load: dict, title: str):
        self.backend = backend
        self.load = load
        self.title = title
        self.runs: Dict[str, List[Result]] = {}
        #: of each subject that is a QEMU
        self.accel: Dict[str, str] = {}

    def add(self, subject: str, result: Result,
            accel: Optional[str] = None) -> None:
        """The subject's run of the next repetition."""
        self.runs.setdefault(subject, []).append(result)
        if accel is not None:
            self.accel[subject] = accel

    def to_json(self, names: List[str], reference: str) -> dict:
        """The cell's part of the document."""
        subjects = {}
        for name in names:
            if name not in self.runs:
                continue
            runs = self.runs[name]
            subjects[name] = {
                'summary': summarize(runs),
                'disks': summarize_disks(runs),
                'ratio': ratios(runs, self.runs[reference])
                if reference in self.runs else None,
                'histogram': merge_histograms(runs),
                'runs': [{key: value for key, value in run.items()
                          if key not in ('event', 'histogram')}
                         for run in runs],
            }
        return {'backend': self.backend, 'workload': self.load,
                'title': self.title, 'accel': self.accel,
                'subjects': subjects}


def compare_again(document: dict, reference: str) -> None:
    """
    Changes the reference of a document.

    :raise ValueError: when it has no such subject.
    """
    if reference not in [subject['name'] for subject in document['subjects']]:
        raise ValueError(f'there is no subject {reference} in it')
    document['reference'] = reference
    for cell in document['cells']:
        subjects = cell['subjects']
        for entry in subjects.values():
            entry['ratio'] = ratios(entry['runs'], subjects[reference]['runs']
                                    ) if reference in subjects else None


def check_document(document) -> None:
    """
    :raise ValueError: when it is none of ours.
    """
    if not isinstance(document, dict) or 'cells' not in document:
        raise ValueError('this is no file of results')
    if document.get('format') != FORMAT:
        raise ValueError(f"it has format {document.get('format')}, not "
                         f'{FORMAT}: measure again')


# ---- the table

def count_text(value: float) -> str:
    """A large number in four digits or so."""
    for limit, unit in ((1e6, 'M'), (1e3, 'k')):
        if value >= limit:
            scaled = value / limit
            digits = 3 if scaled < 10 else 2 if scaled < 100 else 1
            return f'{scaled:.{digits}f} {unit}'
    return f'{value:.0f}'


def micro_text(value: float) -> str:
    """Nanoseconds as microseconds."""
    micro = value / 1000
    return f'{micro:.1f}' if micro < 1000 else f'{micro:.0f}'


def rate_text(value: float) -> str:
    """Something per request, often far below 1."""
    if value == 0:
        return '0'
    return f'{value:.3f}' if value >= 0.001 else '<.001'


def median(summary: Optional[dict], name: str,
           text: Callable[[float], str]) -> str:
    """A median as text, or a dash."""
    entry = summary.get(name) if summary else None
    return '-' if entry is None else text(entry['median'])


def ratio_text(ratio: Optional[dict], name: str) -> str:
    """A ratio, or a dash."""
    return median(ratio, name, '{:.2f}'.format)


def spread_text(summary: dict, name: str) -> str:
    """Half the distance of the quartiles, in percent of the median."""
    entry = summary[name]
    if entry['n'] < 2 or not entry['median']:
        return '-'
    half = (entry['q3'] - entry['q1']) / 2 / entry['median'] * 100
    return f'{half:.1f}%'


#: heading, width, what stands there
COLUMNS = (
    ('IOPS', 8, lambda s, r: median(s, 'iops', count_text)),
    ('±', 6, lambda s, r: spread_text(s, 'iops')),
    ('×ref', 5, lambda s, r: ratio_text(r, 'iops')),
    ('IOThread', 9, lambda s, r: median(s, 'iothread_ns', '{:.0f}'.format)),
    ('×ref', 5, lambda s, r: ratio_text(r, 'iothread_ns')),
    ('process', 8, lambda s, r: median(s, 'process_ns', '{:.0f}'.format)),
    ('driver', 7, lambda s, r: median(s, 'driver_ns', '{:.0f}'.format)),
    ('p50', 8, lambda s, r: median(s, 'p50_ns', micro_text)),
    ('p99', 8, lambda s, r: median(s, 'p99_ns', micro_text)),
    ('p99.9', 8, lambda s, r: median(s, 'p999_ns', micro_text)),
    ('×ref', 5, lambda s, r: ratio_text(r, 'p99_ns')),
    ('kicks', 7, lambda s, r: median(s, 'kicks', rate_text)),
    ('irqs', 6, lambda s, r: median(s, 'interrupts', rate_text)),
)
INSTRUCTIONS = ('insns', 8,
                lambda s, r: median(s, 'instructions', '{:.0f}'.format))
#: what the columns above are, with the number of columns
GROUPS = ((3, 'requests per s'), (4, 'CPU ns per request'),
          (4, 'latency us (×ref of p99)'), (2, 'per request'))


def columns_of(document: dict) -> tuple:
    """Instructions are a column where the CPU counts them."""
    counted = any(entry['summary']['instructions'] is not None
                  for cell in document['cells']
                  for entry in cell['subjects'].values())
    return COLUMNS + (INSTRUCTIONS,) if counted else COLUMNS


def heading(name_width: int, columns: tuple) -> List[str]:
    """The two lines above the table."""
    groups = ' ' * name_width
    start = 0
    for count, text in GROUPS:
        width = sum(column[1] for column in columns[start:start + count])
        groups += text.rjust(width)
        start += count
    names = ' ' * name_width + ''.join(name.rjust(width)
                                       for name, width, _ in columns)
    return [groups, names]


def disk_name(number: int) -> str:
    """One of several disks."""
    return f'disk {number}'


def num_disks(document: dict) -> int:
    """The largest number of disks that is told of."""
    return max((len(entry.get('disks', [])) for cell in document['cells']
                for entry in cell['subjects'].values()), default=0)


def cell_lines(cell: dict, name_width: int, columns: tuple) -> List[str]:
    """The block of one cell."""
    number = max(len(entry['runs']) for entry in cell['subjects'].values())
    lines = [f"{cell['title']}  ({number} run{'s' if number > 1 else ''})"]
    for name, entry in cell['subjects'].items():
        summary, ratio = entry['summary'], entry['ratio']
        lines.append(f'  {name}'.ljust(name_width) + ''.join(
            show(summary, ratio).rjust(width) for _, width, show in columns))
        lines += [f'    {disk_name(number)}'.ljust(name_width) + ''.join(
            show(disk, None).rjust(width) for _, width, show in columns)
                  for number, disk in enumerate(entry.get('disks', []))]
    return lines


def accel_text(cell: dict) -> str:
    """Which accelerator the QEMUs had; empty where that is not known."""
    names: Dict[str, List[str]] = {}
    for subject, accel in cell.get('accel', {}).items():
        names.setdefault(accel, []).append(subject)
    if not names:
        return ''
    return ' (accelerator ' + '; '.join(
        accel if len(names) == 1 else f'{accel}: {", ".join(those)}'
        for accel, those in names.items()) + ')'


def table(document: dict) -> str:
    """The whole table for a terminal."""
    columns = columns_of(document)
    disks = num_disks(document)
    name_width = max([3 + len(subject['name'])
                      for subject in document['subjects']]
                     + [5 + len(disk_name(disks))] * bool(disks))
    lines: List[str] = []
    backend = None
    for cell in document['cells']:
        if cell['backend'] != backend:
            backend = cell['backend']
            lines += ['', f'== {backend}{accel_text(cell)}']
            lines += heading(name_width, columns)
        lines += cell_lines(cell, name_width, columns)
    return '\n'.join(lines + ['', legend(document)])


def legend(document: dict) -> str:
    """How to read it."""
    return (
        f"×ref: against {document['reference']}, in each repetition by "
        'itself; the median of these ratios.\n'
        '±: half the distance of the quartiles. All other numbers: medians '
        'over the repetitions.\n'
        + ('disk: its own requests; the line above is the sum of all disks.\n'
           if num_disks(document) else '') +
        'kicks, irqs: available and used buffer notifications. driver: the '
        'time of our\ndriver, which is no part of the others.')
