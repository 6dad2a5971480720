"""Linear layers with learned, factorized noise on their weights (Fortunato et al. 2018, arXiv:1706.10295).

Owns the layer and its noise; must not import the replay service or the learning loop.
"""

import math

import torch
from torch import Tensor, nn

from learner.networks.products import DenseLayer

SIGMA_ZERO = 0.5
"""Initial sigma times sqrt(inputs): the paper's value for factorized noise."""


class NoisyLinear(DenseLayer):
    """y = (mu_w + sigma_w * f(e_out) f(e_in)^T) x + mu_b + sigma_b * f(e_out), f(e) = sign(e) sqrt|e|.

    weight and bias are mu. Before the first `redraw` the noise is 0, so the layer computes with mu alone, as
    in evaluation. One noise holds for the whole batch.
    """

    noise_in: Tensor
    noise_out: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        sigma = SIGMA_ZERO / math.sqrt(in_features)
        self.weight_sigma = nn.Parameter(torch.full((out_features, in_features), sigma))
        self.bias_sigma = nn.Parameter(torch.full((out_features,), sigma))
        self.register_buffer("noise_in", torch.zeros(in_features), persistent=False)
        self.register_buffer("noise_out", torch.zeros(out_features), persistent=False)

    def redraw(self, generator: torch.Generator) -> None:
        """Draws new noise from a generator on the CPU, whatever the layer's device is."""
        size = self.in_features + self.out_features
        normal = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
        noise = normal.sign() * normal.abs().sqrt()
        # In place, where a recorded update reads it. The backward pass that needed the old noise is queued.
        self.noise_in.copy_(noise[: self.in_features], non_blocking=True)
        self.noise_out.copy_(noise[self.in_features :], non_blocking=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in] -> [B, out]; noise of rank one on the weights is a factor on inputs and one on outputs."""
        linear = self.products.linear
        noise = linear(inputs * self.noise_in, self.weight_sigma, self.bias_sigma)
        return linear(inputs, self.weight, self.bias) + self.noise_out * noise


def redraw_noise(network: nn.Module, generator: torch.Generator) -> None:
    """Draws new noise for every noisy layer of a network, in the order of its modules."""
    for module in network.modules():
        if isinstance(module, NoisyLinear):
            module.redraw(generator)
