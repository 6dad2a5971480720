"""A policy that acts with torch, for networks that actors.policy cannot compute in numpy.

Owns a policy on the CPU; must not import actors, whose protocol `Policy` it follows.
"""

from dataclasses import replace

import numpy as np
import torch

from learner.batch import Observations
from learner.config import LearnerConfig, NetworkSpec
from learner.networks.configured import flat_network
from learner.networks.noisy import redraw_noise
from learner.normalization import ObservationNormalizer
from learner.objectives.heads import make_head
from replay_service.block import OBSERVATION


class TorchPolicy:
    """Computes Q-values on the CPU, whatever the learner's device is; for distributions, their means.

    `noise` makes noisy networks explore: each `load`, once a chunk, draws one noise for all lanes. Without
    `noise` they act by their mean weights, as in evaluation. threads are torch's, for the whole process.
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
        # Weights travel as spectral norm has made them.
        acting = replace(
            config,
            precision="float32",
            spectral_norm=False,
            # These are for the sizes of updates.
            dense_products="auto",
            convolution_layout="auto",
        )
        self._network = flat_network(spec, acting, cpu)
        self._normalizer = ObservationNormalizer(spec, cpu) if config.normalize_observations else None
        self._part_names = tuple(part.name for part in spec.parts)
        self._head = make_head(config, cpu)
        self._noise = (
            None if noise is None else torch.Generator().manual_seed(int(noise.generate_state(1)[0]))
        )

    def load(self, flat_weights: np.ndarray) -> None:
        """Copies weights [P] float32 as the learner gives them, its normalizer's tail included.

        Raises ValueError on a wrong size or dtype.
        """
        tail = self._network.weights[:0] if self._normalizer is None else self._normalizer.tail
        num_weights = len(self._network.weights)
        expected = num_weights + len(tail)
        if flat_weights.shape != (expected,) or flat_weights.dtype != np.float32:
            raise ValueError(
                f"weights are {flat_weights.dtype} {list(flat_weights.shape)}, "
                f"this network takes float32 [{expected}]"
            )
        given = torch.tensor(flat_weights, device="cpu")
        self._network.weights.copy_(given[:num_weights])
        self._network.pack()
        tail.copy_(given[num_weights:])
        if self._noise is not None:
            redraw_noise(self._network.module, self._noise)

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """[N, *observation_shape], or records with a field for each part -> [N, A] float32, a fresh array."""
        inputs: Observations = (
            {name: torch.from_numpy(observations[f"{OBSERVATION}.{name}"]) for name in self._part_names}
            if self._part_names
            else torch.from_numpy(observations)
        )
        if self._normalizer is not None:
            inputs = self._normalizer(inputs)
        outputs = self._network.evaluate(inputs)
        return self._head.values(outputs).numpy()
