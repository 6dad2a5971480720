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
        # Lengths by when episodes began, so that a step costs one addition to one number.
        self._steps = 0
        self._began = np.zeros(num_lanes, np.int64)
        self._ended_returns: list[float] = []
        self._ended_lengths: list[int] = []

    def add(self, step: Step) -> bool:
        """Counts one vector step; True if an episode begins with what it brought."""
        self._returns += step.reward
        self._steps += 1
        if np.count_nonzero(step.ended):
            self._ended_returns += self._returns[step.ended].tolist()
            self._ended_lengths += (self._steps - self._began[step.ended]).tolist()
        if not np.count_nonzero(step.starts):
            return False
        self._returns[step.starts] = 0.0
        self._began[step.starts] = self._steps
        return True

    def take_ended(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Undiscounted returns and lengths (env steps) of the episodes that ended since the last call."""
        ended = tuple(self._ended_returns), tuple(self._ended_lengths)
        self._ended_returns, self._ended_lengths = [], []
        return ended
