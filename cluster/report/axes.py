"""Axes of charts: their range, round ticks, and the text of a tick.

Owns that arithmetic; pure, must not import anything but the standard library.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """An axis from low to high, with ticks between. log: whether it is logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def position(self, value: float) -> float:
        """The position of a value: 0 at low, 1 at high; values outside are clipped."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def vertical(low: float, high: float) -> Axis:
    """A logarithmic axis if the values are positive and span three powers of ten, else a linear one."""
    if low > 0.0 and high / low >= 1_000.0:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        step = math.ceil(len(powers) / 6)
        return Axis(10.0 ** powers[0], 10.0 ** powers[-1], tuple(10.0**p for p in powers[::step]), log=True)
    return linear(low, high, pad=0.05)


def linear(low: float, high: float, pad: float) -> Axis:
    """An axis from low to high, widened at both ends by a share `pad`; about five ticks at round values."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = 0.5 * max(abs(low), 1e-9)
        low, high = (0.0, 1.0) if low == 0.0 else (low - around, high + around)
    else:
        # A metric that is never negative, such as a rate, gets no room below zero.
        floor = 0.0 if low >= 0.0 else -math.inf
        low, high = max(floor, low - pad * (high - low)), high + pad * (high - low)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(step * index for index in range(first, last + 1)))


def tick(value: float) -> str:
    """The text of a tick: 250k, 1.5M, 0.02."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= max(scale, 10_000):
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"
