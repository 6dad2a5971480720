"""A clock for what is done every so many seconds.

Owns when it is due; pure, imports nothing.
"""

from __future__ import annotations


class Every:
    """Says now and then that something is due."""

    def __init__(self, seconds: float, now: float) -> None:
        """The first time is `seconds` after now, which is on the monotonic clock."""
        self._seconds = seconds
        self._last = now

    def due(self, now: float) -> bool:
        """Whether that many seconds have passed since it was last due."""
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
