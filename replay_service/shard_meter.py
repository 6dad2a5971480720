"""What a shard counts of its own work: time by phase, bytes, and how old the rows are that it draws.

Owns those counters; must not import anything but numpy, `histogram` and `messages`.
"""

from __future__ import annotations

import time

import numpy as np

from replay_service.histogram import Tally
from replay_service.messages import PrioritySummary, ShardMetrics
from replay_service.selectors import Selector

_DRAWS_PER_LOOK = 32
_SUMMARY_SECONDS = 5.0


class ShardMeter:
    """Cheap enough for every call: what costs more is looked at in one call of 32, or every 5 seconds."""

    def __init__(self, num_shards: int, transition_bytes: int) -> None:
        """num_shards: of the whole run; transition_bytes: of one sampled transition with its windows."""
        self._num_shards = num_shards
        self._transition_bytes = transition_bytes
        self._insert_seconds = 0.0
        self._sample_seconds = 0.0
        self._update_seconds = 0.0
        self._inserted_bytes = 0
        self._repeated_pushes = 0
        self._draws = 0
        self._age = Tally()
        self._priorities: PrioritySummary | None = None
        self._summarised_at = -_SUMMARY_SECONDS

    def inserted(self, num_bytes: int, seconds: float) -> None:
        """A block of so many encoded bytes was taken in."""
        self._inserted_bytes += num_bytes
        self._insert_seconds += seconds

    def refused(self) -> None:
        """A push came that was held already."""
        self._repeated_pushes += 1

    def exchanged(
        self, keys: np.ndarray, newest_key: int, update_seconds: float, sample_seconds: float
    ) -> None:
        """keys [M] were drawn while newest_key was the newest, after priorities were set."""
        self._update_seconds += update_seconds
        self._sample_seconds += sample_seconds
        if self._draws % _DRAWS_PER_LOOK == 0:
            self._age.add((newest_key - keys) * self._num_shards)
        self._draws += 1

    def read(self, selector: Selector, count: int, capacity: int, sampled_transitions: int) -> ShardMetrics:
        """The metrics of this moment; the priorities are gone through at most every 5 seconds."""
        now = time.monotonic()
        if count and now - self._summarised_at >= _SUMMARY_SECONDS:
            self._summarised_at = now
            maximum, square_sum = selector.concentration()
            # (sum of p)^2 / (N sum of p^2): Kish's effective sample size as a share of what is held.
            effective = selector.mass**2 / (count * square_sum)
            self._priorities = PrioritySummary(maximum, effective)
        return ShardMetrics(
            capacity=capacity,
            seconds={
                "insert": self._insert_seconds,
                "sample": self._sample_seconds,
                "update": self._update_seconds,
            },
            inserted_bytes=self._inserted_bytes,
            sampled_bytes=sampled_transitions * self._transition_bytes,
            repeated_pushes=self._repeated_pushes,
            sample_age=self._age.read(),
            priorities=self._priorities,
        )
