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


def histogram_of(values: np.ndarray) -> Histogram:
    """The histogram of values [M]; negative values count as 0."""
    counts = np.bincount(_BOUNDS.searchsorted(values), minlength=len(BOUNDS) + 1)
    return Histogram(tuple(counts.tolist()), float(values.sum()))
