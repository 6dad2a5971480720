"""Spectral norm: convolutions whose weights are divided by their largest singular value.

Miyato et al. 2018, arXiv:1802.05957. Owns the layer and its power iteration; must not import the replay
service or the learning loop.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

SETTLING_ITERATIONS = 15
"""Iterations for weights that have not been seen before; weights that move slowly need one an update."""


class SpectralConv2d(nn.Conv2d):
    """A convolution by weight / sigma, where sigma = left^T W right is the largest singular value of W.

    W [out, in * height * width] is the weight as a matrix. left [out] and right [in * height * width], both
    of length 1, follow its first singular vectors, by one iteration in each `iterate`. The gradient takes
    them as constants (section 2.1 of the paper), but not sigma.
    """

    left: Tensor
    right: Tensor

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, padding: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size, padding=padding)
        left = functional.normalize(torch.randn(channels_out), dim=0)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", self.weight.detach().flatten(1).t() @ left, persistent=False)
        for _ in range(SETTLING_ITERATIONS):
            self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """Moves left and right closer to the first singular vectors of the present weight, in place."""
        matrix = self.weight.flatten(1)
        self.right.copy_(functional.normalize(matrix.t() @ self.left, dim=0))
        self.left.copy_(functional.normalize(matrix @ self.right, dim=0))

    def normalized(self) -> Tensor:
        """weight / sigma, in float32 under autocast, too."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight / (self.left @ (self.weight.flatten(1) @ self.right))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        return functional.conv2d(inputs, self.normalized(), self.bias, self.stride, self.padding)


def spectral_layers(network: nn.Module) -> list[SpectralConv2d]:
    """The layers with spectral norm, in the order of the network's modules."""
    return [module for module in network.modules() if isinstance(module, SpectralConv2d)]


def spectral_vectors(network: nn.Module) -> list[Tensor]:
    """left and right of each layer, not copied: the part of the layers' state that is no weight."""
    return [vector for layer in spectral_layers(network) for vector in (layer.left, layer.right)]
