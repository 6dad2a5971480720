"""The ends of a run: which of its limits is reached.

Owns the reasons and the clock of stop.seconds; pure, imports no engine.
"""

import math
import time

from cluster.settings.resolved import ResolvedStop

_TARGET = "the target return"


class ActingClock:
    """Counts seconds from the first environment step; the start-up of a process does not count.

    began: when this life first had an environment stepped, on the monotonic clock; None before.
    longest_evaluation_seconds, longest_chunk_seconds: the durations of the longest evaluation and of the
    longest chunk of updates in this process.
    """

    def __init__(self) -> None:
        self.longest_evaluation_seconds = self.longest_chunk_seconds = 0.0
        self._before = 0.0
        self.began: float | None = None

    def resume(self, seconds: float) -> None:
        """Continues a run; seconds: what the processes that ran it before counted."""
        self._before, self.began = seconds, None

    def seconds(self, now: float) -> float:
        """The seconds so far; they stand still until it `began`."""
        return self._before + (0.0 if self.began is None else now - self.began)

    def left(self, limit: float | None) -> float:
        """Seconds until the limit, infinite without one."""
        return math.inf if limit is None else limit - self.seconds(time.monotonic())


def limit_reached(stop: ResolvedStop, env_steps: int, updates: int, seconds: float) -> str | None:
    """The limit that is reached, in words; None if there is none."""
    if stop.env_steps is not None and env_steps >= stop.env_steps:
        return f"stop.env_steps = {stop.env_steps} reached"
    if stop.updates is not None and updates >= stop.updates:
        return f"stop.updates = {stop.updates} reached"
    if stop.seconds is not None and seconds >= stop.seconds:
        return f"stop.seconds = {stop.seconds:g} reached"
    return None


def target_reached(stop: ResolvedStop) -> str:
    """The reason of a run that has reached its target return."""
    return f"{_TARGET} {stop.target_return:g} was reached and confirmed"


def is_target(reason: str) -> bool:
    """Whether the run ended because it reached its target return."""
    return reason.startswith(_TARGET)


def is_own_end(reason: str) -> bool:
    """Whether the run ended by itself, at a limit or its target, and not by a signal."""
    return reason.startswith("stop.") or is_target(reason)
