"""Callbacks of a program that trains: what they may do to the run.

Owns the requests to stop and the metrics that they add; must not import torch or ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from cluster.record.run_events import RunEvent


class RunControl:
    """What a callback may do to its run: stop it, and add metrics to those that the run records."""

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}
        self._reason: str | None = None

    def stop(self, reason: str) -> None:
        """Stops the run as a signal does: it saves a checkpoint, from which it can be resumed."""
        self._reason = self._reason or f"a callback stopped the run: {reason}"

    def log(self, metrics: Mapping[str, float]) -> None:
        """Adds metrics, which keep their values until they get others; "custom" of each snapshot holds them.

        Raises TypeError for a value that is no number.
        """
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"metric {name} is {value!r}; give a number")
        self._metrics |= {name: float(value) for name, value in metrics.items()}

    @property
    def metrics(self) -> Mapping[str, float] | None:
        """The newest values of all metrics that were added and are finite; None without any."""
        return {name: value for name, value in self._metrics.items() if math.isfinite(value)} or None

    def request(self) -> str | None:
        """The reason to stop, or None."""
        return self._reason


Callback = Callable[[RunEvent, RunControl], object]
"""Called with each event in the thread of the coordinator, which waits for it; what it returns is ignored."""
