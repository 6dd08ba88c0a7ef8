# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""Numbers for people, in six characters at most, and from them."""

from typing import Optional

UNKNOWN = '-'
PREFIXES = ('', 'k', 'M', 'G', 'T')
UNITS = (('us', 1e3), ('ms', 1e6), ('s', 1e9))
#: seconds from which on minutes and hours are shown
MINUTES, HOURS = 100, 6000
#: what an interval can be
MIN_SECONDS, MAX_SECONDS = 0.1, 3600.0


def three_digits(value: float) -> str:
    """At least three, as in 1.23, 12.3, 123; 0 is 0."""
    if value == 0:
        return '0'
    if value < 9.995:
        return f'{value:.2f}'
    return f'{value:.1f}' if value < 99.95 else f'{value:.0f}'


def amount(value: Optional[float]) -> str:
    """A count or a rate, as in 1.23k."""
    if value is None:
        return UNKNOWN
    prefix = 0
    while value >= 999.5 and prefix + 1 < len(PREFIXES):
        value /= 1000
        prefix += 1
    return three_digits(value) + PREFIXES[prefix]


def count(value: Optional[int]) -> str:
    """A small whole number."""
    if value is None:
        return UNKNOWN
    return str(value) if value < 10000 else amount(value)


def share(value: Optional[float]) -> str:
    """In per cent."""
    return UNKNOWN if value is None else f'{100 * value:.0f}%'


def duration(value: Optional[float]) -> str:
    """Nanoseconds."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return '0'
    seconds = value / 1e9
    if seconds >= HOURS:
        return f'{seconds / 3600:.0f}h'
    if seconds >= MINUTES:
        return f'{seconds / 60:.0f}m'
    for unit, size in UNITS:
        if value < 999.5 * size or unit == 's':
            return three_digits(value / size) + unit
    raise AssertionError('the last unit takes all')


def seconds(text: str) -> float:
    """:raise ValueError: if it is not a sensible number of them."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not MIN_SECONDS <= value <= MAX_SECONDS:
        raise ValueError(f'give {MIN_SECONDS:g} to {MAX_SECONDS:g} seconds')
    return value
