"""Axes hold their values and a few round ticks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.report.axes import linear, tick, vertical


@given(
    low=st.floats(-1e12, 1e12),
    span=st.one_of(st.just(0.0), st.floats(1e-6, 1e12)),
    pad=st.sampled_from([0.0, 0.05]),
)
def test_axes_hold_their_values_and_a_few_round_ticks(low: float, span: float, pad: float) -> None:
    axis = linear(low, low + span, pad)
    assert axis.low <= low <= low + span <= axis.high
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 12
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= value <= axis.high + slack for value in axis.ticks)
    assert 0.0 <= axis.position(low) <= axis.position(low + span) <= 1.0


def test_a_vertical_axis_is_logarithmic_only_where_values_span_far() -> None:
    assert not vertical(1.0, 999.0).log
    assert not vertical(-1.0, 1e9).log
    axis = vertical(0.02, 3e4)
    assert axis.log
    assert (axis.low, axis.high) == (pytest.approx(0.01), pytest.approx(1e5))
    assert axis.position(math.sqrt(axis.low * axis.high)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.05, "0.05"), (2_500.0, "2500"), (250_000.0, "250k"), (1.5e6, "1.5M"), (-2e9, "-2G")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert tick(value) == text
