"""Numbers as people write them: "10m", "100k", "1e6", "16GB".

Owns the suffixes and the messages about them; must not import anything but the standard library.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal

Unit = Literal["seconds", "bytes", "number"]

_COUNTS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_SIZES = {
    f"{prefix}{infix}B": float(base**power)
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate(("", "k", "M", "G", "T"))
    if prefix or not infix
} | {"KB": 1e3, "KiB": 1024.0}
_TIMES = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3_600.0),
    **dict.fromkeys(("d", "day", "days"), 86_400.0),
}
_SCALES: Mapping[Unit, Mapping[str, float]] = {
    "seconds": _TIMES,
    "bytes": {**_COUNTS, **_SIZES},
    "number": _COUNTS,
}
_EXAMPLES: Mapping[Unit, str] = {
    "seconds": "a duration such as 90, 90s, 10m or 1h30m",
    "bytes": "a size such as 512MB or 16GB",
    "number": "a number such as 5000, 100k or 1e6",
}
_PART = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?) ?([A-Za-z]*)")


def unit_of(setting: str) -> Unit:
    """The unit in which a setting is given, which its name tells."""
    if setting.endswith("seconds"):
        return "seconds"
    return "bytes" if setting.endswith("bytes") else "number"


def example(unit: Unit) -> str:
    """Words for what may be written."""
    return _EXAMPLES[unit]


def parsed(text: str, unit: Unit) -> float | None:
    """The number that a text means, in seconds for a duration, in bytes for a size; None for other texts.

    A duration may have several parts: "1h30m".
    """
    scales = _SCALES[unit]
    parts = list(_PART.finditer(text.strip()))
    if not parts or "".join(part[0] for part in parts) != text.strip():
        return None
    if len(parts) > 1 and (unit != "seconds" or not all(part[2] for part in parts)):
        return None
    if not all(part[2] in scales or not part[2] for part in parts):
        return None
    # In decimals, because 0.29 * 100 is not 29 in floats, and a count must be whole.
    return float(sum(Decimal(part[1].replace("_", "")) * Decimal(scales.get(part[2], 1.0)) for part in parts))
