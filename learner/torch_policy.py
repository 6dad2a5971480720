"""Values for acting where the network is more than a numpy forward pass.

Owns a policy on the CPU; must not import actors, whose `Policy` it fits by its shape alone.
"""

from __future__ import annotations

import numpy as np
import torch

from learner.config import LearnerConfig, NetworkSpec
from learner.heads import make_head
from learner.update import flat_network


class TorchPolicy:
    """Weights in, Q-values out; of a distribution, its mean. Acts on the CPU, wherever the learner is.

    `noise` makes noisy networks explore: every `load`, once a chunk, draws one noise for all lanes. Without
    it they act by their mean weights, as evaluation does. Sets torch's threads for the whole process.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        config: LearnerConfig,
        threads: int,
        noise: np.random.SeedSequence | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        cpu = torch.device("cpu")
        self._network = flat_network(spec, config, cpu)
        self._head = make_head(config, cpu)
        self._noise: torch.Generator | None = None
        if noise is not None:
            self._noise = torch.Generator().manual_seed(int(noise.generate_state(1)[0]))

    def load(self, flat_weights: np.ndarray) -> None:
        """Takes [P] float32 in the learner's order. Raises ValueError on a wrong size or dtype."""
        expected = self._network.weights.shape
        if flat_weights.shape != expected or flat_weights.dtype != np.float32:
            raise ValueError(
                f"weights are {flat_weights.dtype} {list(flat_weights.shape)}, "
                f"this network takes float32 {list(expected)}"
            )
        self._network.weights.copy_(torch.tensor(flat_weights))
        if self._noise is not None:
            self._network.redraw_noise(self._noise)

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """[N, *observation_shape] -> [N, A] float32, a fresh array."""
        outputs = self._network.evaluate(torch.from_numpy(observations))
        return self._head.values(outputs).numpy()
