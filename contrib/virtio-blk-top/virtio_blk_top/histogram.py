# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Differences and quantiles of histograms.

Knows neither where they come from nor what they count.
"""

import math
from dataclasses import dataclass
from typing import Iterable, Optional, Tuple


@dataclass(frozen=True)
class Histogram:
    """
    How many values there were between two bounds.

    bounds: the upper bound of each interval, ascending; the first interval
        begins at 0, and the last may end at infinity
    counts: as many as bounds
    """
    bounds: Tuple[float, ...]
    counts: Tuple[int, ...]

    @property
    def total(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def since(self, before: Optional['Histogram']) -> Optional['Histogram']:
        """
        What has been added, or None if that cannot be told: there was none
        before, or somebody has cleared it.
        """
        if before is None or before.bounds != self.bounds:
            return None
        counts = tuple(now - then for now, then
                       in zip(self.counts, before.counts))
        return None if min(counts, default=0) < 0 else Histogram(self.bounds,
                                                                 counts)

    def _interval(self, index: int) -> Tuple[float, float]:
        """Its bounds; what is open above is taken as empty."""
        lower = self.bounds[index - 1] if index else 0.0
        upper = self.bounds[index]
        return lower, lower if math.isinf(upper) else upper

    def quantile(self, share: float) -> Optional[float]:
        """
        The value below which this share of the values lies, as if those of an
        interval were spread evenly in it. None without any.
        """
        left = share * self.total
        for index, count in enumerate(self.counts):
            if count and left <= count:
                lower, upper = self._interval(index)
                return lower + (upper - lower) * left / count
            left -= count
        return self.maximum()

    def maximum(self) -> Optional[float]:
        """
        The bound that the largest value does not exceed, or exceeds if it is
        in the interval that is open above. None without any.
        """
        for index in reversed(range(len(self.counts))):
            if self.counts[index]:
                return self._interval(index)[1]
        return None


def add_up(histograms: Iterable[Optional[Histogram]]) -> Optional[Histogram]:
    """
    The sum of histograms with the same bounds; None if there is none, if one
    is None, or if bounds differ.
    """
    result: Optional[Histogram] = None
    for histogram in histograms:
        if histogram is None:
            return None
        if result is None:
            result = histogram
        elif result.bounds != histogram.bounds:
            return None
        else:
            result = Histogram(result.bounds, tuple(
                map(sum, zip(result.counts, histogram.counts))))
    return result
