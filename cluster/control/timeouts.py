"""How long a role may be silent while it has something to do, and the clock by which that is told.

Owns limits and clock, all pure; imports no engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from actors.core import EvaluationReport

# A gap between two looks that is longer is the machine's, or the looker's own: as much of it counts.
_MOST_GAP_SECONDS = 1.0
# Slower than ever by so much is not slow any more.
_TIMES_THE_LONGEST = 20.0
_TIMES_FULL_LENGTH = 4.0
_TIMES_THE_START = 4.0
_LEAST_CHUNK_SECONDS = 60.0


class AwakeClock:
    """Counts the seconds in which its owner looked at it: none of a time in which the owner stood still."""

    def __init__(self, now: float) -> None:
        """now: on the monotonic clock."""
        self._looked_at = now
        self.seconds = 0.0

    def look(self, now: float) -> None:
        """Its owner is awake."""
        self.seconds += min(now - self._looked_at, _MOST_GAP_SECONDS)
        self._looked_at = now


class RoleTimeouts:
    """The limits of silence, in seconds of work: generous, and wider where work is known to take long.

    A shard answers between two calls, so frozen_seconds is its limit. A learner has twice that, an evaluator
    four times, or 20 times the longest that one has taken. An evaluation may get longer as episodes do, so
    that it also has 4 times what the slowest one would take with episodes of full length; before there was
    one nobody knows. An actor has chunk_deadline_seconds, or where that is None a minute, 20 times the
    longest chunk, or 4 times the longest start, in which all of its environments were reset.
    """

    def __init__(
        self,
        frozen_seconds: float,
        max_episode_steps: int | None,
        chunk_deadline_seconds: float | None = None,
    ) -> None:
        self._frozen_seconds = frozen_seconds
        self._max_episode_steps = max_episode_steps
        self._chunk_deadline_seconds = chunk_deadline_seconds
        self._longest: dict[str, float] = {"learner": 0.0, "evaluator": 0.0, "actor": 0.0}
        self._longest_start_seconds = 0.0
        self._full_length_seconds: float | None = None

    def answered(self, kind: str, seconds: float) -> None:
        """A role of this kind has answered after so long."""
        if kind in self._longest:
            self._longest[kind] = max(self._longest[kind], seconds)

    def came_up(self, kind: str, seconds: float) -> None:
        """A role of this kind has come up after so long."""
        if kind == "actor":
            self._longest_start_seconds = max(self._longest_start_seconds, seconds)

    def evaluated(self, report: EvaluationReport) -> None:
        """What an evaluation took tells what the next ones may take."""
        steps = max(report.lengths, default=0)
        longer = self._max_episode_steps / steps if self._max_episode_steps and steps else 1.0
        self._full_length_seconds = max(self._full_length_seconds or 0.0, report.seconds * max(1.0, longer))

    def limits(self) -> Mapping[str, float]:
        """By kind of role; infinite where nothing can be said."""
        evaluator = math.inf
        if self._full_length_seconds is not None:
            evaluator = max(
                4.0 * self._frozen_seconds,
                _TIMES_THE_LONGEST * self._longest["evaluator"],
                _TIMES_FULL_LENGTH * self._full_length_seconds,
            )
        return {
            "shard": self._frozen_seconds,
            "learner": max(2.0 * self._frozen_seconds, _TIMES_THE_LONGEST * self._longest["learner"]),
            "evaluator": evaluator,
            "actor": self._chunk_deadline_seconds
            or max(
                _LEAST_CHUNK_SECONDS,
                _TIMES_THE_LONGEST * self._longest["actor"],
                _TIMES_THE_START * self._longest_start_seconds,
            ),
        }
