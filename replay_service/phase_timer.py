"""Seconds that a loop spends in each of its phases, without gaps.

Owns the clock of one loop; must not import anything but the standard library.
"""

from time import perf_counter


class PhaseTimer:
    """Sums the seconds of each phase. One phase runs at any time, so the sums add up to the elapsed time.

    The first phase given runs from construction on.
    """

    def __init__(self, *phases: str) -> None:
        self._phase = phases[0]
        self._seconds = dict.fromkeys(phases, 0.0)
        self._entered_at = perf_counter()

    def enter(self, phase: str) -> None:
        """Ends the running phase and begins `phase`, one of those given to the constructor."""
        now = perf_counter()
        self._seconds[self._phase] += now - self._entered_at
        self._phase = phase
        self._entered_at = now

    def shift(self, seconds: float, source: str, target: str) -> None:
        """Moves seconds from phase `source` to `target`, where the right phase is known only afterwards."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def totals(self) -> dict[str, float]:
        """Phase -> seconds up to now, including the running phase."""
        self.enter(self._phase)
        return dict(self._seconds)

    def take(self) -> dict[str, float]:
        """The totals since the last `take`; then all phases begin again at zero."""
        taken = self.totals()
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return taken
