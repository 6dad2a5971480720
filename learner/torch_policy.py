"""Greedy values for actors whose network is more than a numpy forward pass.

Owns a policy on the CPU; must not import actors, whose `Policy` it fits by its shape alone.
"""

from __future__ import annotations

import numpy as np
import torch

from learner.config import LearnerConfig, NetworkSpec
from learner.update import flat_network


class TorchPolicy:
    """Weights in, Q-values out. Acts on the CPU whatever the learner's device is; sets torch's threads."""

    def __init__(self, spec: NetworkSpec, config: LearnerConfig, threads: int) -> None:
        torch.set_num_threads(threads)
        self._network = flat_network(spec, config, torch.device("cpu"))

    def load(self, flat_weights: np.ndarray) -> None:
        """Takes [P] float32 in the learner's order. Raises ValueError on a wrong size or dtype."""
        expected = self._network.weights.shape
        if flat_weights.shape != expected or flat_weights.dtype != np.float32:
            raise ValueError(
                f"weights are {flat_weights.dtype} {list(flat_weights.shape)}, "
                f"this network takes float32 {list(expected)}"
            )
        self._network.weights.copy_(torch.tensor(flat_weights))

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """[N, *observation_shape] -> [N, A] float32, a fresh array."""
        return self._network.evaluate(torch.from_numpy(observations)).numpy()
