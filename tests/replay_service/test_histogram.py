"""Histograms: the buckets against a loop."""

from __future__ import annotations

import numpy as np
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
