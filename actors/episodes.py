"""Returns and lengths of episodes in progress and ended.

Owns that bookkeeping; must not know of policies, rows or blocks.
"""

from __future__ import annotations

import numpy as np

from actors.stepper import Step


class EpisodeLedger:
    """Sums rewards and counts steps of N lanes; keeps what ended until it is taken."""

    def __init__(self, num_lanes: int) -> None:
        self._returns = np.zeros(num_lanes)
        self._lengths = np.zeros(num_lanes, np.int64)
        self._ended_returns: list[float] = []
        self._ended_lengths: list[int] = []

    def add(self, step: Step) -> None:
        """Counts one vector step."""
        self._returns += step.reward
        self._lengths += 1
        if np.count_nonzero(step.ended):
            self._ended_returns += self._returns[step.ended].tolist()
            self._ended_lengths += self._lengths[step.ended].tolist()
        if np.count_nonzero(step.starts):
            self._returns[step.starts] = 0.0
            self._lengths[step.starts] = 0

    def take_ended(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Undiscounted returns and lengths (env steps) of the episodes that ended since the last call."""
        ended = tuple(self._ended_returns), tuple(self._ended_lengths)
        self._ended_returns, self._ended_lengths = [], []
        return ended
