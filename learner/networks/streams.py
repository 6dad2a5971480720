"""What stands above a torso: hidden layer and outputs, dueling streams, and implicit quantiles.

Owns these layers; must not import the replay service or the learning loop.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.batch import Observations
from learner.config import LearnerConfig
from learner.fractions import midpoints
from learner.networks.noisy import NoisyLinear
from learner.networks.products import Linear
from learner.networks.torsos import Encoder, JoinedTorso, dense


class TorsoAndStreams(nn.Module):
    """A torso, and above it a stream: one hidden layer and the outputs. A dueling network has a second
    stream, for the value.

    config.noisy makes the layers of the streams noisy: the fully connected layers of an image network, the
    last hidden layer and the outputs of an MLP.
    """

    def __init__(
        self,
        torso: Encoder | JoinedTorso,
        hidden: int,
        outputs: tuple[int, ...],
        config: LearnerConfig,
    ) -> None:
        super().__init__()
        linear = NoisyLinear if config.noisy else Linear

        def stream(shape: tuple[int, ...]) -> nn.Sequential:
            layers = dense(torso.num_features, hidden, config.layer_norm, linear)
            return nn.Sequential(*layers, linear(hidden, math.prod(shape)), nn.Unflatten(1, shape))

        self.torso = torso
        self.advantage = stream(outputs)
        self.value = stream((1, *outputs[1:])) if config.dueling else None

    def forward(self, observations: Observations) -> Tensor:
        """[B, *shape], or a dict of parts -> [B, *outputs]."""
        return self._outputs(self.torso(observations))

    def _outputs(self, hidden: Tensor) -> Tensor:
        """Features [B, F] -> [B, *outputs]."""
        advantage: Tensor = self.advantage(hidden)
        return advantage if self.value is None else dueling(self.value(hidden), advantage)


class ImplicitQuantiles(TorsoAndStreams):
    """IQN: quantiles of the return at any fractions tau (Dabney et al. 2018b, arXiv:1806.06923, section 3).

    The streams see the torso's features times an embedding of tau, elementwise, and give one value for each
    action. Actors, evaluation and export ask at num_fractions fixed fractions, the midpoints of equal parts.
    """

    def __init__(
        self, torso: Encoder | JoinedTorso, hidden: int, num_actions: int, config: LearnerConfig
    ) -> None:
        super().__init__(torso, hidden, (num_actions,), config)
        self.embedding = CosineEmbedding(config.iqn_cosines, torso.num_features)
        self._num_fractions = config.iqn_acting_quantiles

    def forward(self, observations: Observations, fractions: Tensor | None = None) -> Tensor:
        """[B, *shape], or a dict of parts, and fractions [B, N] or [1, N] -> [B, A, N].

        fractions None: the fixed ones.
        """
        hidden: Tensor = self.torso(observations)
        if fractions is None:
            fractions = midpoints(self._num_fractions, hidden.float()).unsqueeze(0)
        embedded = hidden.unsqueeze(1) * self.embedding(fractions)
        quantiles = self._outputs(embedded.flatten(0, 1))
        return quantiles.reshape(hidden.shape[0], fractions.shape[1], -1).transpose(1, 2)


class CosineEmbedding(nn.Module):
    """phi(tau) = relu(W [cos(pi i tau)] + b) for i = 0 … num_cosines - 1 (equation 4 of the same paper)."""

    frequencies: Tensor

    def __init__(self, num_cosines: int, num_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_cosines, num_features)
        self.register_buffer("frequencies", math.pi * torch.arange(num_cosines), persistent=False)

    def forward(self, fractions: Tensor) -> Tensor:
        """[B, N] -> [B, N, num_features]."""
        features: Tensor = self.linear((fractions.unsqueeze(2) * self.frequencies).cos())
        return functional.relu(features)


def dueling(value: Tensor, advantage: Tensor) -> Tensor:
    """Q(s, a) = V(s) + A(s, a) - mean over a' of A(s, a') (Wang et al. 2016, arXiv:1511.06581, equation 9).

    For distributions the same holds for each atom's logit (Hessel et al. 2018, arXiv:1710.02298) or quantile.

    Args:
        value: [B, 1] or [B, 1, N].
        advantage: [B, A] or [B, A, N].

    Returns:
        In the shape of advantage.

    Raises:
        ValueError: shapes do not agree.
    """
    batch_size, _, *atoms = advantage.shape
    if tuple(value.shape) != (batch_size, 1, *atoms):
        raise ValueError(f"value has shape {list(value.shape)}, expected {[batch_size, 1, *atoms]}")
    return value + advantage - advantage.mean(dim=1, keepdim=True)
