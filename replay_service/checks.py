"""Checks of single settings. Each message names the setting, its value and the cure.

Owns these checks for the configs of all packages; must not import anything outside the standard library.
"""

import math


def require(holds: bool, setting: str, value: object, cure: str) -> None:
    """Raises ValueError with these parts as its message, unless the check `holds`."""
    if not holds:
        raise ValueError(f"{setting} is {value}; {cure}")


def at_least(least: int, section: str, config: object, *names: str, cure: str = "") -> None:
    """Raises ValueError for the first of these settings that is below `least`; None is allowed."""
    default = f"give at least {least}" if least else "give 0 or more"
    within(least, math.inf, section, config, *names, cure=cure or default)


def above_zero(section: str, config: object, *names: str, cure: str = "it must be above 0") -> None:
    """Raises ValueError for the first of these settings that is not above 0; None is allowed."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{section}.{name}", value, cure)


def within(low: float, high: float, section: str, config: object, *names: str, cure: str) -> None:
    """Raises ValueError for the first of these settings that is outside [low, high]; None is allowed."""
    for name in names:
        value = getattr(config, name)
        require(value is None or low <= value <= high, f"{section}.{name}", value, cure)
