"""Texts of numbers, durations and sizes.

Owns wording only; pure, must not import anything but the standard library.
"""

import math


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separators, without decimals from 10,000 on; "-" for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return count(value) if abs(value) >= 10_000 else f"{value:,.{digits}f}"


def count(value: float) -> str:
    """A whole number with thousands separators; in M, G or T from ten million on."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= max(scale, 1e7):
            return f"{value / scale:,.2f} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def byte_size(num_bytes: int) -> str:
    """A size in decimal units, with about three digits."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= scale:
            value = num_bytes / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{num_bytes} bytes"


def quantity(number: float, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 shard", "0.5 CPUs", "2,000 steps". plural: default: noun with an s."""
    return f"{number:,.10g} {noun if number == 1 else plural or f'{noun}s'}"
