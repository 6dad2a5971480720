"""Counters of a shard's work: seconds, bytes, pushes, and the ages of the transitions that it draws.

Owns those counters; must not import anything but numpy and replay_service's messages, histogram, timer and
selectors.
"""

import time

import numpy as np

from replay_service.histogram import Histogram, histogram_of
from replay_service.messages import PrioritySummary, ProcessUsage, ShardMetrics
from replay_service.phase_timer import PhaseTimer
from replay_service.selectors import Selector

_DRAWS_PER_AGE_SAMPLE = 32
_SUMMARY_SECONDS = 5.0


class ShardMeter:
    """Counts every call; for speed it measures ages in one draw of 32 only, priorities every 5 seconds.

    It counts how often each transition is drawn, too, for what became of it when it is evicted.

    Attributes:
        first_counted_key: transitions before it are in no count of evicted draws: the journal gave them back,
            and how often they had been drawn is not known.
        timer: measures the phases "insert", "sample", "update", and "idle", which is not reported.
        *_transitions, *_priorities, *_pushes, inserted_bytes: counts since the shard began.
    """

    def __init__(self, num_shards: int, transition_bytes: int, capacity: int) -> None:
        """num_shards: shards of the run; transition_bytes: size of a sampled transition with its windows;
        capacity: transitions that this shard can hold."""
        self.timer = PhaseTimer("idle", "insert", "sample", "update")
        self.evicted_transitions = 0
        self.sampled_transitions = 0
        self.late_priorities = 0
        self.repeated_pushes = 0
        self.refused_pushes = 0
        self.refused_priorities = 0
        self.inserted_bytes = 0
        self._num_shards = num_shards
        self._transition_bytes = transition_bytes
        self._draws = 0
        self._age = Histogram()
        self.first_counted_key = 0
        # Key k has its count at k % capacity, as in the store.
        self._draws_of = np.zeros(capacity, np.uint16)
        # How many of the evicted transitions had been drawn d times, for each d.
        self._evicted_by_draws = np.zeros(1 << 16, np.int64)
        self._priorities: PrioritySummary | None = None
        self._summarized_at = -_SUMMARY_SECONDS

    def drawn(self, keys: np.ndarray, newest_key: int) -> None:
        """Counts a draw of keys [M]; newest_key: the newest key held at that time."""
        self.sampled_transitions += len(keys)
        if self._draws % _DRAWS_PER_AGE_SAMPLE == 0:
            self._age += histogram_of((newest_key - keys) * self._num_shards)
        self._draws += 1
        np.add.at(self._draws_of, keys % len(self._draws_of), np.uint16(1))

    def evicted(self, first_key: int, end_key: int) -> None:
        """Counts the eviction of the transitions with keys in [first_key, end_key)."""
        self.evicted_transitions += end_key - first_key
        while first_key < end_key:
            # Up to where the places begin again.
            place = first_key % len(self._draws_of)
            stop = min(place + end_key - first_key, len(self._draws_of))
            draws = self._draws_of[place:stop]
            np.add.at(self._evicted_by_draws, draws[max(0, self.first_counted_key - first_key) :], 1)
            draws[:] = 0
            first_key += stop - place

    def read(self, selector: Selector, count: int, process: ProcessUsage | None = None) -> ShardMetrics:
        """The metrics up to now, of a shard that holds `count` transitions. process: its own one's usage."""
        now = time.monotonic()
        if count and now - self._summarized_at >= _SUMMARY_SECONDS:
            self._summarized_at = now
            maximum, square_sum = selector.concentration()
            self._priorities = PrioritySummary(maximum, selector.mass**2 / (count * square_sum))
        draws = np.flatnonzero(self._evicted_by_draws)
        times = self._evicted_by_draws[draws]
        seconds = self.timer.totals()
        del seconds["idle"]
        return ShardMetrics(
            capacity=len(self._draws_of),
            seconds=seconds,
            inserted_bytes=self.inserted_bytes,
            sampled_bytes=self.sampled_transitions * self._transition_bytes,
            repeated_pushes=self.repeated_pushes,
            refused_pushes=self.refused_pushes,
            refused_priorities=self.refused_priorities,
            sample_age=self._age,
            evicted_draws=histogram_of(draws, times),
            evicted_draws_square_sum=float(np.square(draws) @ times),
            priorities=self._priorities,
            process=process,
        )
