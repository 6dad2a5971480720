"""Significance: Student's t against its published table, Welch and Mann-Kendall against examples by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cluster.control.significance import (
    ALPHA,
    Sample,
    critical_t,
    difference_lower_bound,
    mean_lower_bound,
    student_tail,
    trend,
)


@pytest.mark.parametrize(
    ("freedom", "t"),
    # Upper 0.1 % points of Student's t, as every table of it has them.
    [(1, 318.31), (2, 22.327), (3, 10.215), (4, 7.173), (5, 5.893), (10, 4.144), (30, 3.385), (120, 3.160)],
)
def test_critical_values_are_those_of_the_table(freedom: int, t: float) -> None:
    assert critical_t(freedom) == pytest.approx(t, rel=2e-4)
    assert student_tail(critical_t(freedom), freedom) == pytest.approx(ALPHA)


def test_the_tail_of_one_and_two_degrees_has_a_closed_form() -> None:
    for t in (0.0, 0.5, 2.0, 30.0):
        assert student_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi)
        assert student_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))


def test_a_comparison_by_hand() -> None:
    # Variances of the means 1 and 4, so 5; degrees of freedom 25 / (1 / 10 + 16 / 20) = 27.8, taken as 27.
    a, b = Sample(50.0, math.sqrt(10.0), 11), Sample(30.0, math.sqrt(80.0), 21)
    assert difference_lower_bound(a, b) == pytest.approx(20.0 - 3.4210 * math.sqrt(5.0), abs=1e-3)
    assert mean_lower_bound(a) == pytest.approx(50.0 - 4.1437, abs=1e-3)
    # Without spread a difference is what it is.
    assert difference_lower_bound(Sample(2.0, 0.0, 5), Sample(1.0, 0.0, 5)) == 1.0


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(20_000):
        a, b = rng.normal(0.0, 1.0, 20), rng.normal(0.0, 5.0, 20)
        alarms += (
            difference_lower_bound(
                Sample(float(a.mean()), float(a.std()), 20), Sample(float(b.mean()), float(b.std()), 20)
            )
            > 0.0
        )
    # 20 are expected; a Poisson count lies within 4 of its deviations.
    assert abs(alarms - 20) < 4 * math.sqrt(20)


def test_a_trend_by_hand() -> None:
    # S = 10 of 10 pairs, variance 5 * 4 * 15 / 18.
    assert trend([1, 2, 3, 4, 5]) == pytest.approx(9 / math.sqrt(300 / 18))
    assert trend([5, 4, 3, 2, 1]) == -trend([1, 2, 3, 4, 5])
    assert trend([1, 1, 1, 1]) == 0.0
    assert trend([1, 2]) == 0.0
