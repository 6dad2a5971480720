"""Histograms: the buckets against a loop, quantiles against what Prometheus would say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.histogram import BOUNDS, Histogram, histogram_of

VALUES = st.lists(st.integers(0, 2**24), max_size=60)


def naive(values: list[int]) -> tuple[int, ...]:
    bounds = (*BOUNDS, float("inf"))
    below = (-1, *BOUNDS)
    return tuple(
        sum(low < value <= bound for value in values) for low, bound in zip(below, bounds, strict=True)
    )


@given(first=VALUES, second=VALUES)
def test_a_histogram_counts_as_a_loop_does(first: list[int], second: list[int]) -> None:
    before, since = histogram_of(np.array(first, np.int64)), histogram_of(np.array(second, np.int64))
    after = before + since
    assert before == Histogram(naive(first), sum(first))
    assert after == Histogram(naive(first + second), sum(first + second))
    assert after - before == Histogram(naive(second), sum(second))


@pytest.mark.parametrize(
    ("values", "q", "quantile"),
    [
        ([], 0.5, None),
        ([0, 0], 0.5, 0.0),
        # Four values in the bucket (8, 16]: the median lies half-way through it.
        ([9, 10, 15, 16], 0.5, 12.0),
        ([1, 1, 1, 16], 0.75, 1.0),
        ([1, 1, 1, 16], 1.0, 16.0),
        ([2**24], 0.5, float(BOUNDS[-1])),
    ],
)
def test_quantiles(values: list[int], q: float, quantile: float | None) -> None:
    assert histogram_of(np.array(values, np.int64)).quantile(q) == quantile
