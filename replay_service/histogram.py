"""Histograms of ages and lags, with powers of two as bucket bounds.

Owns the buckets; must not import anything but numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BOUNDS: tuple[int, ...] = (0, *(2**power for power in range(23)))
"""Upper bounds of all buckets but the last, which is unbounded: 0, 1, 2, 4, ... 2^22."""

_BOUNDS = np.array(BOUNDS)


@dataclass(frozen=True)
class Histogram:
    """counts[i] values lie above BOUNDS[i - 1] and are at most BOUNDS[i]; `sum` adds up all values."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    sum: float = 0.0

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    def __add__(self, other: Histogram) -> Histogram:
        """The values of both histograms."""
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(counts, self.sum + other.sum)

    def __sub__(self, earlier: Histogram) -> Histogram:
        """The values counted since `earlier`, an older state of this histogram."""
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        return Histogram(counts, self.sum - earlier.sum)


def histogram_of(values: np.ndarray, times: np.ndarray | int = 1) -> Histogram:
    """The histogram of values [M], each counted so many `times` ([M] integers); negative ones count as 0."""
    counts = np.zeros(len(BOUNDS) + 1, np.int64)
    np.add.at(counts, _BOUNDS.searchsorted(values), times)
    return Histogram(tuple(counts.tolist()), float((values * times).sum()))
