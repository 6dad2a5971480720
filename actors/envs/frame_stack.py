"""Stacks of each lane's newest frames, as a policy observes them.

Owns the rolling stack that rollout and evaluation share; must not import anything but numpy.
"""

import numpy as np


class FrameStack:
    """The last `stack` frames of N lanes; at an episode's start its first frame is repeated.

    If frames are records, *shape is empty: a stack holds all their fields.

    Attributes:
        observations: [N, stack, *shape], oldest first, valid until the next push. If stack is 1, the frames
            [N, *shape] that were pushed last.
    """

    def __init__(self, stack: int, frames: np.ndarray) -> None:
        """frames [N, *shape] begin an episode in every lane."""
        self._stack = stack
        self.observations = frames if stack == 1 else np.repeat(frames[:, None], stack, axis=1)

    def push(self, frames: np.ndarray, starts: np.ndarray) -> None:
        """Appends frames [N, *shape]; starts [N] bool: lanes in which they begin an episode."""
        if self._stack == 1:
            self.observations = frames
            return
        self.observations[:, :-1] = self.observations[:, 1:]
        if np.count_nonzero(starts):
            self.observations[starts] = frames[starts, None]
        self.observations[:, -1] = frames

    def followed_by(self, frames: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Observations of lanes [K] if frames [K, *shape] came next; nothing is pushed."""
        if self._stack == 1:
            return frames.copy()
        return np.concatenate([self.observations[lanes, 1:], frames[:, None]], axis=1)
