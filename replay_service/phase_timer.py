"""Where a role's time goes: seconds by phase, without gaps.

Owns the clock of one loop; must not import anything but the standard library.
"""

from __future__ import annotations

from time import perf_counter


class PhaseTimer:
    """Sums the seconds of each phase of a loop. One phase runs at a time, so the sum is the whole time.

    The first phase named is the one that runs from construction on.
    """

    def __init__(self, *phases: str) -> None:
        self._phase = phases[0]
        self._seconds = dict.fromkeys(phases, 0.0)
        self._entered_at = perf_counter()

    def enter(self, phase: str) -> None:
        """Ends the running phase and begins this one; its name must be one of those given."""
        now = perf_counter()
        self._seconds[self._phase] += now - self._entered_at
        self._phase = phase
        self._entered_at = now

    def shift(self, seconds: float, source: str, target: str) -> None:
        """Counts seconds of phase `source` as `target`: only after the fact was it known what they were."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def totals(self) -> dict[str, float]:
        """Phase -> seconds up to now, the running phase included."""
        self.enter(self._phase)
        return dict(self._seconds)

    def take(self) -> dict[str, float]:
        """The totals since the last `take`; the next ones begin at zero."""
        taken = self.totals()
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return taken
