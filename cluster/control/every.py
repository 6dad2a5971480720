"""A timer for periodic work.

Owns when the work is due; pure, imports nothing.
"""


class Every:
    """A timer that is due every `seconds`."""

    def __init__(self, seconds: float, now: float) -> None:
        """now: on the monotonic clock; first due `seconds` later."""
        self._seconds = seconds
        self._last = now

    def due(self, now: float) -> bool:
        """Whether `seconds` have passed since it was last due; if so, the next period begins now."""
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
