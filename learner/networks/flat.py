"""A network whose weights are one vector, and so is their gradient.

Owns the layout and the passes through autograd; must not import optimizers, numpy or the replay service.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from learner.batch import Observations
from learner.networks.noisy import redraw_noise
from learner.networks.products import Linear


class FlatNetwork:
    """Parameters and gradients of a network as views into two contiguous vectors.

    One vector makes each whole-network operation (optimizer step, clipping, target copy, broadcast) one call.
    `forward` then `backward` is the only way to a gradient; what is backpropagated is the gradient of the
    loss with respect to the outputs, so that nothing can flow through a target. Outputs are [B, A], or
    [B, A, N] where each action has a distribution.

    Attributes:
        weights: [P] float32, in the order of network.parameters().
        gradient: [P] float32, overwritten by each `backward`.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network.to(device)
        self._forward: Callable[[Observations], Tensor] = self._network
        self._parameters = list(self._network.parameters())
        self._shapes = [parameter.shape for parameter in self._parameters]
        self.weights = parameters_to_vector(self._parameters).detach()
        self.gradient = torch.zeros_like(self.weights)
        for parameter, weights in zip(self._parameters, self.views(self.weights), strict=True):
            parameter.data = weights

    def compile(self) -> None:
        """Has torch.compile make the passes, with CUDA graphs on a GPU; each compiles in its first call."""
        mode = "reduce-overhead" if self.weights.device.type == "cuda" else None
        self._forward = torch.compile(self._network, mode=mode, dynamic=False)

    def uncompile(self) -> None:
        """Takes `compile` back."""
        self._forward = self._network

    def redraw_noise(self, generator: torch.Generator) -> None:
        """New noise for noisy layers, from a generator on the CPU. Before the first call there is none."""
        redraw_noise(self._network, generator)

    def views(self, vector: Tensor) -> list[Tensor]:
        """The pieces of a vector [P], each in the shape of its parameter and sharing the vector's memory."""
        pieces = torch.split(vector, [shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def pack(self) -> None:
        """Makes `evaluate` faster for weights that stay as they are now; call it again once they changed."""
        for module in self._network.modules():
            if isinstance(module, Linear):
                module.pack()

    @torch.no_grad()
    def evaluate(self, observations: Observations) -> Tensor:
        """[B, *shape], or a dict of parts -> outputs, with nothing kept for `backward`."""
        return self._forward(observations)

    def forward(self, obs_tm1: Observations) -> Tensor:
        """[B, *shape] -> outputs, detached; keeps what `backward` needs."""
        with torch.enable_grad():
            self._outputs = self._forward(obs_tm1)
        return torch.detach(self._outputs)

    def forward_pair(self, obs_tm1: Observations, obs_t: Observations) -> tuple[Tensor, Tensor]:
        """Two [B, *shape] -> outputs of each; keeps what `backward` needs of the first."""
        return self.forward(obs_tm1), self.evaluate(obs_t)

    def backward(self, gradient: Tensor) -> None:
        """Fills `gradient` from the loss's derivative by the last forward pass's outputs, in their shape."""
        # One copy of each: accumulating into the vector would first fill it with zeros, then read it again.
        gradients = torch.autograd.grad(self._outputs, self._parameters, gradient, materialize_grads=True)
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=self.gradient)
