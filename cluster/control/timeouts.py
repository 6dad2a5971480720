"""Timeouts: how long a role may work without an answer, and the clock that measures it.

Owns limits and clock, all pure; imports no engine.
"""

import collections
import math
from collections.abc import Mapping

# A longer gap between two looks means that the machine or the owner was suspended, so it counts no more.
_MOST_GAP_SECONDS = 1.0
# Work is taken to hang when it exceeds its longest duration so far by these factors.
_TIMES_THE_LONGEST = 20.0
_TIMES_THE_START = 4.0
_LEAST_CHUNK_SECONDS = 60.0
_COMPILE_SECONDS = 600.0
# What nobody has done yet may take long and still be healthy: times the timeout of a shard.
FIRST_TIMES_FROZEN = 20.0
# Without these nothing is inserted or learned.
_MOVERS = ("actor", "learner")
# Much longer than most chunks take, and short enough for whoever waits for the end of a run.
_CHUNK_SECONDS = 2.0


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


def chunk_seconds(frozen_seconds: float, chunk_deadline_seconds: float | None) -> float:
    """After this many seconds a role ends its chunk with the step or update at hand, and answers.

    So answers tell that a role works, on whichever machine, however slow its environment or network is.
    """
    return min(_CHUNK_SECONDS, frozen_seconds / 4.0, (chunk_deadline_seconds or math.inf) / 4.0)


class RoleTimeouts:
    """Timeouts per kind of role, in seconds without an answer; they grow with the time that answers take.

    Chunks end after `chunk_seconds`, so an answer takes that and one step of all lanes, or one update.

    Until a kind of role has answered its first chunk of work, nothing is known about it: it has 20 times
    frozen_seconds at least, unless chunk_deadline_seconds says otherwise. Afterwards:

    Shard: frozen_seconds, because it answers between any two calls.
    Learner: twice that, or 20 times its longest answer if that is more; 10 minutes if it compiles.
    Evaluator: four times frozen_seconds, or 20 times its longest answer; before its first one, in which it
        makes and resets its environments, 20 times the longest start of an actor.
    Actor: chunk_deadline_seconds; if that is None, the largest of a minute, 20 times the longest chunk, and 4
        times the longest start, in which all of its environments were reset.
    """

    def __init__(
        self, frozen_seconds: float, chunk_deadline_seconds: float | None = None, *, compiles: bool = False
    ) -> None:
        """compiles: whether the learner compiles its network in its first update."""
        self._frozen_seconds = frozen_seconds
        self._chunk_deadline_seconds = chunk_deadline_seconds
        self._compile_seconds = _COMPILE_SECONDS if compiles else 0.0
        self.longest_answer: dict[str, float] = collections.defaultdict(float)
        """Kind of role -> the longest that one took to answer, in seconds."""
        self._longest_start: dict[str, float] = collections.defaultdict(float)
        self._first_seconds = FIRST_TIMES_FROZEN * frozen_seconds
        self.unproven = {"learner", "evaluator"}
        """Kinds of roles without an answer to a chunk of work so far."""
        if chunk_deadline_seconds is None:
            self.unproven.add("actor")

    def answered(self, kind: str, seconds: float, *, worked: bool) -> None:
        """Notes that a role of this kind answered after `seconds`. worked: whether to a chunk of work."""
        self.longest_answer[kind] = max(self.longest_answer[kind], seconds)
        if worked:
            self.unproven.discard(kind)

    def came_up(self, kind: str, seconds: float) -> None:
        """Notes that a role of this kind came up after `seconds`."""
        self._longest_start[kind] = max(self._longest_start[kind], seconds)

    def slow_work_seconds(self) -> float:
        """How long a run may healthily stand still, as far as its work so far shows.

        Twice the longest answer or start of actors and learner; what compiling may take, if it compiles; and
        before their first chunks, what those may take.
        """
        known = max(seen[kind] for seen in (self.longest_answer, self._longest_start) for kind in _MOVERS)
        first = self._first_seconds if self.unproven & set(_MOVERS) else 0.0
        return max(2.0 * known, self._compile_seconds, first)

    def limits(self) -> Mapping[str, float]:
        """Kind of role -> timeout."""
        usual = self.usual_limits()
        return {
            kind: max(limit, self._first_seconds) if kind in self.unproven else limit
            for kind, limit in usual.items()
        }

    def usual_limits(self) -> Mapping[str, float]:
        """Kind of role -> timeout, as it is once the role has answered its first chunk."""
        frozen, answer, start = self._frozen_seconds, self.longest_answer, self._longest_start
        return {
            "shard": frozen,
            "learner": max(2.0 * frozen, _TIMES_THE_LONGEST * answer["learner"], self._compile_seconds),
            "evaluator": max(
                4.0 * frozen,
                _TIMES_THE_LONGEST * answer["evaluator"],
                0.0 if answer["evaluator"] else _TIMES_THE_LONGEST * start["actor"],
            ),
            "actor": self._chunk_deadline_seconds
            or max(
                _LEAST_CHUNK_SECONDS,
                _TIMES_THE_LONGEST * answer["actor"],
                _TIMES_THE_START * start["actor"],
            ),
        }
