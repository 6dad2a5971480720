"""Tests of significance for what a run measures: means of episodes, and trends.

Owns Student's t, Welch's comparison and Mann-Kendall's trend; pure, imports nothing of the project.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist

import numpy as np

ALPHA = 0.001
"""Significance level of each single comparison: its probability of a false alarm."""

CRITICAL_Z = 3.0902
"""A standard normal variable exceeds it with probability ALPHA."""


@dataclass(frozen=True)
class Sample:
    """count values with their mean and standard deviation (of the values themselves: divided by count)."""

    mean: float
    std: float
    count: int

    @property
    def error(self) -> float:
        """Standard error of the mean. Raises ZeroDivisionError for one value, which has no spread."""
        return self.std / math.sqrt(self.count - 1)


def student_tail(t: float, freedom: int) -> float:
    """P(T > t) for t >= 0 and Student's t with `freedom` degrees of freedom.

    Exact for whole numbers (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    cosine = math.cos(angle)
    factors = (cosine * cosine * (step - 1) / step for step in range(2 + odd, freedom - 1, 2))
    terms = accumulate(factors, operator.mul, initial=cosine if odd else 1.0)
    within = math.sin(angle) * math.fsum(terms) if freedom > 1 else 0.0
    if odd:
        within = 2.0 / math.pi * (angle + within)
    return (1.0 - within) / 2.0


@lru_cache(maxsize=512)
def critical_t(freedom: int, alpha: float = ALPHA) -> float:
    """The t that Student's t exceeds with probability alpha. Raises ValueError for less than 1 degree."""
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom; at least 1 is needed")
    if freedom > 10_000:
        return NormalDist().inv_cdf(1.0 - alpha)
    low, high = 0.0, 1.0 / alpha
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > alpha else (low, middle)
    return high


def mean_lower_bound(sample: Sample, alpha: float = ALPHA) -> float:
    """Lower confidence bound of the mean: the true mean is below it with probability alpha."""
    return sample.mean - critical_t(sample.count - 1, alpha) * sample.error


def difference_lower_bound(a: Sample, b: Sample, alpha: float = ALPHA) -> float:
    """Lower confidence bound, at level alpha, of the mean of a minus that of b; above 0: a is greater.

    Welch 1947 (doi:10.1093/biomet/34.1-2.28); degrees of freedom rounded down, to the safe side.
    """
    parts = a.error**2, b.error**2
    variance = sum(parts)
    if variance == 0.0:
        return a.mean - b.mean
    freedom = variance**2 / (parts[0] ** 2 / (a.count - 1) + parts[1] ** 2 / (b.count - 1))
    return a.mean - b.mean - critical_t(math.floor(freedom), alpha) * math.sqrt(variance)


def trend(values: Sequence[float]) -> float:
    """Mann and Kendall's trend as a standard normal (Kendall 1975, "Rank Correlation Methods").

    0 for fewer than 3 values. Ties count as 0, which makes the test conservative.
    """
    count = len(values)
    if count < 3:
        return 0.0
    array = np.asarray(values, np.float64)
    later, earlier = array[None, :], array[:, None]
    rises = float(np.count_nonzero(np.triu(later > earlier)) - np.count_nonzero(np.triu(later < earlier)))
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return math.copysign(max(0.0, abs(rises) - 1.0), rises) / deviation
