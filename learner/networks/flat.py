"""A network whose weights are one vector, and so is their gradient.

Owns that layout and the passes through autograd; must not import optimizers, numpy or the replay service.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from learner.batch import Observations
from learner.networks.products import Linear


class FlatNetwork:
    """Parameters and gradients of a network as views into two contiguous vectors.

    One vector makes each operation on the whole network (optimizer step, clipping, target copy, broadcast)
    one call. `forward` then `backward` is the only way to a gradient. `backward` starts from the output
    gradient, the derivative of the loss by the outputs, so that nothing can flow through a target. Outputs
    are [B, A], or [B, A, N] where each action has a distribution.

    Attributes:
        module: the network, whose parameters are views of `weights`.
        weights: [P] float32, in the order of network.parameters().
        gradient: [P] float32, the derivative of the loss by the weights; each `backward` overwrites it.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.module = network.to(device)
        self._forward: Callable[[Observations], Tensor] = self.module
        self._parameters = list(self.module.parameters())
        self._shapes = [parameter.shape for parameter in self._parameters]
        self.weights = parameters_to_vector(self._parameters).detach()
        self.gradient = torch.zeros_like(self.weights)
        for parameter, weights in zip(self._parameters, self.views(self.weights), strict=True):
            parameter.data = weights

    def compile(self) -> None:
        """Compiles the passes by torch.compile, each in its first call; on a GPU with CUDA graphs."""
        mode = "reduce-overhead" if self.weights.device.type == "cuda" else None
        self._forward = torch.compile(self.module, mode=mode, dynamic=False)

    def uncompile(self) -> None:
        """Goes back to the passes from before `compile`."""
        self._forward = self.module

    def views(self, vector: Tensor) -> list[Tensor]:
        """The pieces of a vector [P], each in the shape of its parameter and sharing the vector's memory."""
        pieces = torch.split(vector, [shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def pack(self) -> None:
        """Makes `evaluate` faster for the present weights. Repeat it after each change of the weights."""
        for module in self.module.modules():
            if isinstance(module, Linear):
                module.pack()

    @torch.no_grad()
    def evaluate(self, observations: Observations) -> Tensor:
        """[B, *shape], or a dict of parts -> outputs; keeps nothing for `backward`."""
        return self._forward(observations)

    def forward(self, obs_tm1: Observations) -> Tensor:
        """[B, *shape], or a dict of parts -> outputs, detached; keeps what `backward` needs."""
        with torch.enable_grad():
            self._outputs = self._forward(obs_tm1)
        return torch.detach(self._outputs)

    def forward_pair(self, obs_tm1: Observations, obs_t: Observations) -> tuple[Tensor, Tensor]:
        """Outputs for both observations; keeps what `backward` needs of the first."""
        return self.forward(obs_tm1), self.evaluate(obs_t)

    def backward(self, output_gradient: Tensor) -> None:
        """Fills `gradient`. output_gradient: dL by the outputs of the last `forward`, in their shape."""
        gradients = torch.autograd.grad(
            self._outputs, self._parameters, output_gradient, materialize_grads=True
        )
        # One copy of each piece. Accumulating would first fill the vector with zeros, then read it again.
        torch.cat([piece.reshape(-1) for piece in gradients], out=self.gradient)
