"""A network whose weights are one vector, and so is their gradient.

Owns the layout and the passes through autograd; must not import optimisers, numpy or the replay service.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector


class FlatNetwork:
    """Parameters and gradients of a network as views into two contiguous vectors.

    One vector makes each whole-network operation (optimiser step, clipping, target copy, broadcast) one call.
    `forward` then `backward` is the only way to a gradient; what is backpropagated is the slope of the loss
    with respect to the Q-values, so that nothing can flow through a target.

    Attributes:
        weights: [P] float32, in the order of network.parameters().
        gradient: [P] float32, overwritten by each `backward`.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network.to(device)
        parameters = list(self._network.parameters())
        self._shapes = [parameter.shape for parameter in parameters]
        self.weights = parameters_to_vector(parameters).detach()
        self.gradient = torch.zeros_like(self.weights)
        pieces = zip(parameters, self.views(self.weights), self.views(self.gradient), strict=True)
        for parameter, weights, gradient in pieces:
            parameter.data = weights
            # Autograd accumulates into a gradient that is there already, in place: into the vector.
            parameter.grad = gradient

    def views(self, vector: Tensor) -> list[Tensor]:
        """The pieces of a vector [P], each in the shape of its parameter and sharing the vector's memory."""
        pieces = torch.split(vector, [shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    @torch.no_grad()
    def evaluate(self, observations: Tensor) -> Tensor:
        """[B, *shape] -> Q-values [B, A], with nothing kept for `backward`."""
        q: Tensor = self._network(observations)
        return q

    def forward(self, obs_tm1: Tensor) -> Tensor:
        """[B, *shape] -> Q-values [B, A], detached; keeps what `backward` needs."""
        with torch.enable_grad():
            self._q_tm1: Tensor = self._network(obs_tm1)
        return torch.detach(self._q_tm1)

    def forward_pair(self, obs_tm1: Tensor, obs_t: Tensor) -> tuple[Tensor, Tensor]:
        """Two [B, *shape] -> Q-values [B, A] of each; keeps what `backward` needs of the first."""
        return self.forward(obs_tm1), self.evaluate(obs_t)

    def backward(self, slope: Tensor) -> None:
        """Fills `gradient` from slope [B, A], the loss's derivative by the last forward pass's Q-values."""
        self.gradient.zero_()
        torch.autograd.backward(self._q_tm1, slope)
