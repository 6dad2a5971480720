"""Timeouts: how long a role may work without an answer, and the clock that measures it.

Owns limits and clock, all pure; imports no engine.
"""

import collections
import math
from collections.abc import Mapping

from actors.core import EvaluationReport

# A longer gap between two looks means that the machine or the owner was suspended, so it counts no more.
_MOST_GAP_SECONDS = 1.0
# Work is taken to hang when it exceeds its longest duration so far by these factors.
_TIMES_THE_LONGEST = 20.0
_TIMES_FULL_LENGTH = 4.0
_TIMES_THE_START = 4.0
_LEAST_CHUNK_SECONDS = 60.0


class AwakeClock:
    """Counts the seconds in which its owner was awake: a gap between two looks counts one second at most."""

    def __init__(self, now: float) -> None:
        """now: on the monotonic clock."""
        self._looked_at = now
        self.seconds = 0.0

    def look(self, now: float) -> None:
        """Adds the seconds since the last look."""
        self.seconds += min(now - self._looked_at, _MOST_GAP_SECONDS)
        self._looked_at = now


class RoleTimeouts:
    """Timeouts per kind of role, in seconds of work; they grow with the time that work has taken.

    Shard: frozen_seconds, because it answers between any two calls.
    Learner: twice that, or 20 times its longest answer if that is more.
    Evaluator: no timeout until the first evaluation has finished; then the largest of 4 times frozen_seconds,
        20 times its longest answer, and 4 times the slowest evaluation as it would have been with episodes of
        full length, which they may reach as the policy gets better.
    Actor: chunk_deadline_seconds; if that is None, the largest of a minute, 20 times the longest chunk, and 4
        times the longest start, in which all of its environments were reset.
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
        self._longest_answer: dict[str, float] = collections.defaultdict(float)
        self._longest_start: dict[str, float] = collections.defaultdict(float)
        self._full_length_seconds: float | None = None

    def answered(self, kind: str, seconds: float) -> None:
        """Notes that a role of this kind answered after `seconds`."""
        self._longest_answer[kind] = max(self._longest_answer[kind], seconds)

    def came_up(self, kind: str, seconds: float) -> None:
        """Notes that a role of this kind came up after `seconds`."""
        self._longest_start[kind] = max(self._longest_start[kind], seconds)

    def evaluated(self, report: EvaluationReport) -> None:
        """Notes the duration of an evaluation, scaled to episodes of full length."""
        steps = max(report.lengths, default=0)
        longer = self._max_episode_steps / steps if self._max_episode_steps and steps else 1.0
        self._full_length_seconds = max(self._full_length_seconds or 0.0, report.seconds * max(1.0, longer))

    def limits(self) -> Mapping[str, float]:
        """Kind of role -> timeout; infinite if nothing is known yet."""
        full = math.inf if self._full_length_seconds is None else self._full_length_seconds
        return {
            "shard": self._frozen_seconds,
            "learner": max(2.0 * self._frozen_seconds, _TIMES_THE_LONGEST * self._longest_answer["learner"]),
            "evaluator": max(
                4.0 * self._frozen_seconds,
                _TIMES_THE_LONGEST * self._longest_answer["evaluator"],
                _TIMES_FULL_LENGTH * full,
            ),
            "actor": self._chunk_deadline_seconds
            or max(
                _LEAST_CHUNK_SECONDS,
                _TIMES_THE_LONGEST * self._longest_answer["actor"],
                _TIMES_THE_START * self._longest_start["actor"],
            ),
        }
