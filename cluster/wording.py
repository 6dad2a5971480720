"""Texts of numbers, durations and sizes.

Owns wording only; pure, must not import anything but the standard library.
"""

import math
import re
import textwrap


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separators, without decimals from 10,000 on; "-" for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return count(value) if abs(value) >= 10_000 else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """A number with three significant digits, as "12.3k" or "1.23M" where it is large; "-" for None."""
    if value is None:
        return "-"
    rounded = float(f"{value:.3g}")
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if scale <= abs(rounded) < 1e15:
            return f"{rounded / scale:.3g}{unit}"
    return f"{rounded:.3g}"


def without_numbers(text: str) -> str:
    """The words of a text, which are the same for two texts that differ in numbers only."""
    return re.sub(r"-?[\d,.]+(e[-+]?\d+)?|-?inf", "", text)


def wrapped(text: str, width: int, indent: str) -> str:
    """The text in lines of at most `width` characters; all but the first begin with `indent`."""
    first, *others = text.splitlines() or [""]
    lines = textwrap.wrap(first, width, subsequent_indent=indent)
    for other in others:
        lines += textwrap.wrap(other, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


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
