# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Pictures of a document of results: for each backend one, as PNG and as SVG,
with IOPS and CPU per request over depth, and the distribution of latencies.

Knows the document of report.py and matplotlib.
"""

import os
from typing import Dict, List, Tuple

import matplotlib
matplotlib.use('Agg')
# pylint: disable=wrong-import-position
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import EngFormatter, ScalarFormatter  # noqa: E402

#: panels per row, and the size of one in inches
COLUMNS = 3
PANEL = (3.8, 2.7)
#: colours that also differ in lightness; the same subject has the same one
COLOURS = ('#0b6e99', '#d1495b', '#5c946e', '#8e6c8a', '#edae49', '#30343f',
           '#66a182', '#a23e48')
MARKERS = 'osD^vPX*'
#: how far from the end the distribution is drawn: 99.99 %
TAIL = 1e-4


class Style:
    """What a subject looks like in all panels."""

    def __init__(self, names: List[str]):
        self._number = {name: number for number, name in enumerate(names)}

    def of(self, name: str) -> dict:
        """Keywords for plot()."""
        number = self._number[name]
        return {'color': COLOURS[number % len(COLOURS)],
                'marker': MARKERS[number % len(MARKERS)],
                'markersize': 4, 'linewidth': 1.4, 'label': name}


def series(cells: List[dict], name: str, metric: str
           ) -> Tuple[List[int], List[float], List[float], List[float]]:
    """Depths with median and quartiles of a subject's metric."""
    rows = []
    for cell in cells:
        entry = cell['subjects'].get(name)
        value = entry['summary'][metric] if entry else None
        if value is not None:
            rows.append((cell['workload']['depth'], value['median'],
                         value['q1'], value['q3']))
    rows.sort()
    return tuple(map(list, zip(*rows))) if rows else ([], [], [], [])


def draw_metric(axes, cells: List[dict], names: List[str], style: Style,
                metric: str, label: str) -> None:
    """A metric over depth, with the quartiles as a band."""
    for name in names:
        depths, medians, low, high = series(cells, name, metric)
        if depths:
            look = style.of(name)
            axes.plot(depths, medians, **look)
            axes.fill_between(depths, low, high, color=look['color'],
                              alpha=0.15, linewidth=0)
    depths = sorted({cell['workload']['depth'] for cell in cells})
    axes.set_xscale('log', base=2)
    axes.set_xticks(depths)
    axes.get_xaxis().set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel('depth', fontsize=8)
    axes.set_title(label, fontsize=9)


def distribution(histogram: List[List[float]]
                 ) -> Tuple[List[float], List[float]]:
    """Latencies in microseconds, and which part of all took longer."""
    total = sum(count for _, count in histogram)
    seen = 0
    latencies, rest = [], []
    for latency, count in histogram:
        seen += count
        latencies.append(latency / 1000)
        rest.append(max((total - seen) / total, TAIL / 10))
    return latencies, rest


def latency_range(entries: List[dict]) -> Tuple[float, float]:
    """From where to where something happens, in microseconds."""
    low, high = [], []
    for entry in entries:
        latencies, rest = distribution(entry['histogram'])
        low.append(next(latency for latency, part in zip(latencies, rest)
                        if part < 0.99))
        high.append(next(latency for latency, part in zip(latencies, rest)
                         if part <= TAIL))
    return min(low) / 1.5, max(high) * 1.5


def draw_latencies(axes, cell: dict, names: List[str], style: Style) -> None:
    """
    The distribution function, its end stretched: on this scale 90 %, 99 % and
    99.9 % lie equally far apart.
    """
    entries = {name: cell['subjects'][name] for name in names
               if name in cell['subjects']}
    for name, entry in entries.items():
        axes.plot(*distribution(entry['histogram']),
                  drawstyle='steps-post',
                  **{**style.of(name), 'marker': ''})
    axes.set_xscale('log')
    axes.set_xlim(latency_range(list(entries.values())))
    axes.set_yscale('log')
    axes.set_ylim(1, TAIL)
    axes.set_yticks([1, 0.1, 0.01, 0.001, TAIL])
    axes.set_yticklabels(['0', '90 %', '99 %', '99.9 %', '99.99 %'])
    axes.get_xaxis().set_major_formatter(EngFormatter(sep=''))
    axes.minorticks_off()
    axes.set_xlabel('us', fontsize=8)
    axes.set_title(f"done within, depth {cell['workload']['depth']}",
                   fontsize=9)


def kinds(cells: List[dict]) -> List[Tuple[str, List[dict]]]:
    """The cells by workload, those that differ in depth only together."""
    result: Dict[tuple, List[dict]] = {}
    for cell in cells:
        load = {key: value for key, value in cell['workload'].items()
                if key != 'depth'}
        result.setdefault(tuple(load.items()), []).append(cell)
    return [(group[0]['title'].rsplit(', depth', 1)[0], group)
            for group in result.values()]


def rows_of(group: List[dict]) -> int:
    """Rows of panels of a workload: both metrics, then the latencies."""
    return 1 + -(-len(group) // COLUMNS)


def draw_kind(panels: list, title: str, cells: List[dict], names: List[str],
              style: Style) -> None:
    """The panels of one workload; the third has the legend."""
    panels[0].annotate(title, (0, 1.16), xycoords='axes fraction',
                       fontsize=10, fontweight='bold')
    draw_metric(panels[0], cells, names, style, 'iops', 'IOPS')
    panels[0].get_yaxis().set_major_formatter(EngFormatter(sep=''))
    draw_metric(panels[1], cells, names, style, 'iothread_ns',
                'CPU of the IOThread, ns per request')
    shown = [name for name in names
             if any(name in cell['subjects'] for cell in cells)]
    panels[2].legend([pyplot.Line2D([], [], **style.of(name))
                      for name in shown], shown, loc='center left',
                     fontsize=9, frameon=False)
    for axes, cell in zip(panels[COLUMNS:], cells):
        draw_latencies(axes, cell, names, style)
    for axes in [panels[2], *panels[COLUMNS + len(cells):]]:
        axes.set_axis_off()
    for axes in panels:
        axes.tick_params(labelsize=8)
        axes.grid(True, color='#dddddd', linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)


def draw_backend(backend: str, cells: List[dict], names: List[str]):
    """The figure of one backend."""
    groups = kinds(cells)
    rows = sum(rows_of(group) for _, group in groups)
    figure, grid = pyplot.subplots(
        rows, COLUMNS, squeeze=False, layout='constrained',
        figsize=(PANEL[0] * COLUMNS, PANEL[1] * rows + 0.5))
    style = Style(names)
    panels = list(grid.flat)
    for title, group in groups:
        count = rows_of(group) * COLUMNS
        draw_kind(panels[:count], title, group, names, style)
        panels = panels[count:]
    figure.suptitle(f'virtio-blk on {backend}', x=0.01, ha='left',
                    fontsize=11)
    return figure


def draw(document: dict, directory: str) -> List[str]:
    """
    All pictures.

    :return: the files.
    """
    os.makedirs(directory, exist_ok=True)
    names = [subject['name'] for subject in document['subjects']]
    files = []
    for backend in dict.fromkeys(cell['backend']
                                 for cell in document['cells']):
        cells = [cell for cell in document['cells']
                 if cell['backend'] == backend]
        figure = draw_backend(backend, cells, names)
        for suffix in ('png', 'svg'):
            path = os.path.join(directory, f'{backend}.{suffix}')
            figure.savefig(path, dpi=110)
            files.append(path)
        pyplot.close(figure)
    return files
