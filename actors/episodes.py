"""Returns and lengths of episodes in progress and ended.

Owns that bookkeeping; must not know of policies, transitions or blocks.
"""

import numpy as np


class EpisodeLedger:
    """Sums rewards and counts steps of N lanes; keeps ended episodes until they are taken."""

    def __init__(self, num_lanes: int) -> None:
        self._lanes = np.arange(num_lanes)
        # Return and length so far of the episode in progress in each lane.
        self._returns = np.zeros(num_lanes)
        self._lengths = np.zeros(num_lanes, np.int64)
        self._ended_returns: list[float] = []
        self._ended_lengths: list[int] = []

    def add(self, reward: np.ndarray, ended: np.ndarray, starts: np.ndarray) -> None:
        """Counts T vector steps: reward [T, N], 0 in an autoreset; ended and starts [T, N] bool.

        As in `actors.envs.stepper.Step`, an episode ends with a step `ended`, and the next one begins after
        a step `starts`: the same step or the one after it.
        """
        num_steps, num_lanes = reward.shape
        # Lane after lane with one more column, for a start after the last step. Each stretch between two
        # starts is summed by itself: an infinite reward spoils only its own episode.
        width = num_steps + 1
        begins = np.zeros((num_lanes, width), np.bool_)
        begins[:, 0] = True
        begins[:, 1:] = starts.T
        rewards = np.zeros((num_lanes, width))
        rewards[:, :-1] = reward.T
        first = begins.ravel().nonzero()[0]
        returns = np.add.reduceat(rewards.ravel(), first)
        # The first and the last stretch of each lane.
        head = first.searchsorted(self._lanes * width)
        tail = np.empty_like(head)
        tail[:-1] = head[1:]
        tail[-1] = len(first)
        tail -= 1
        t, lane = np.divmod(ended.ravel().nonzero()[0], num_lanes)
        last = lane * width + t
        stretch = first.searchsorted(last, side="right") - 1
        returns[head] += self._returns
        # Where each stretch's episode began: for the first ones, before this data.
        first[head] -= self._lengths

        self._ended_returns += returns[stretch].tolist()
        self._ended_lengths += (last + 1 - first[stretch]).tolist()
        self._returns = returns[tail]
        self._lengths = self._lanes * width + num_steps - first[tail]

    @property
    def longest_open_steps(self) -> int:
        """Env steps so far of the longest episode in progress; an ended one counts until its reset."""
        return int(self._lengths.max())

    def take_ended(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Undiscounted returns and lengths (env steps) of the episodes that ended since the last call."""
        ended = tuple(self._ended_returns), tuple(self._ended_lengths)
        self._ended_returns, self._ended_lengths = [], []
        return ended
