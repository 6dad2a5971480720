"""The networks that map observations to Q-values.

Owns architectures and how observations enter them; must not import the replay service or the learning loop.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.config import ImageShape, LearnerConfig, NetworkSpec, image_shape, resolve_network


def build_network(spec: NetworkSpec, config: LearnerConfig) -> nn.Module:
    """A freshly initialised network [B, *observation_shape] -> Q-values [B, A] float32.

    parameters() come layer by layer, weight [out, in] then bias: an MLP's flat vector is W1, b1, W2, b2, …;
    a table's is [S, A], row by row, all zero at first. Draws from torch's global generator.

    Raises:
        ValueError: the network that config names does not fit the observations.
    """
    match resolve_network(spec, config):
        case "table":
            assert spec.num_states is not None, "resolve_network gives a table to Discrete observations only"
            table = nn.Embedding(spec.num_states, spec.num_actions)
            nn.init.zeros_(table.weight)
            return table
        case "nature_cnn":
            image = image_shape(spec)
            assert image is not None, "resolve_network gives the Nature CNN to images only"
            return NatureCnn(image, spec.num_actions)
        case "mlp":
            return Mlp((math.prod(spec.observation_shape), *config.hidden_sizes, spec.num_actions))


def features(observations: Tensor) -> Tensor:
    """[B, *shape] of any dtype -> [B, D] float32, row-major; uint8 is divided by 255."""
    flat = observations.reshape(len(observations), -1)
    return flat.float().div_(255.0) if flat.dtype == torch.uint8 else flat.float()


class Mlp(nn.Module):
    """Fully connected layers with ReLU between them; sizes are [D, hidden…, A]."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(sizes))

    def forward(self, observations: Tensor) -> Tensor:
        """[B, *shape] -> [B, A]."""
        hidden = features(observations)
        for layer in self.layers[:-1]:
            hidden = functional.relu(layer(hidden))
        q: Tensor = self.layers[-1](hidden)
        return q


class NatureCnn(nn.Module):
    """The convolutional network of Mnih et al. 2015, doi:10.1038/nature14236, "Model architecture".

    Observations are uint8 [B, H, W], [B, H, W, C] or [B, C, H, W], with a stack axis after B where frames
    are stacked: all of them become [B, channels, H, W] in [0, 1].
    """

    def __init__(self, image: ImageShape, num_actions: int) -> None:
        super().__init__()
        self._image = image
        self.convolutions = nn.Sequential(
            nn.Conv2d(image.channels, 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        pixels = [(((side - 8) // 4 + 1) - 4) // 2 - 1 for side in (image.height, image.width)]
        self.head = nn.Sequential(
            nn.Linear(64 * math.prod(pixels), 512), nn.ReLU(), nn.Linear(512, num_actions)
        )

    def forward(self, observations: Tensor) -> Tensor:
        """[B, *shape] uint8 -> [B, A]."""
        if self._image.channels_last:
            observations = observations.movedim(-1, -3)
        channels, height, width, _ = self._image
        images = observations.reshape(len(observations), channels, height, width)
        # Channels last in memory: about 1.2 times as many updates a second on a CPU.
        images = images.to(torch.float32, memory_format=torch.channels_last).div_(255.0)
        q: Tensor = self.head(self.convolutions(images))
        return q
