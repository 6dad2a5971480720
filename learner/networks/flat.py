"""A network whose weights are one vector, as is their gradient; its forward and backward passes by autograd.

Owns that layout and these passes; must not import optimizers, numpy or the replay service.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from learner.batch import Observations
from learner.config import LearnerConfig
from learner.networks.products import DenseLayer, Linear, products_by
from learner.networks.spectral import spectral_layers
from learner.networks.torsos import ImageTorso


class FlatNetwork:
    """Parameters and gradients of a network as views into two contiguous vectors.

    One vector makes each operation on the whole network (optimizer step, clipping, target copy, broadcast)
    one call. `forward` then `backward` is the only way to a gradient. `backward` starts from the output
    gradient, the derivative of the loss by the outputs, so that nothing can flow through a target. Outputs
    are [B, A], or [B, A, N] where each action has a distribution. Implicit quantiles are taken at fractions
    [B, N], or where these are not given at the fixed ones of acting; other networks take none.

    Attributes:
        module: the network, whose parameters are views of `weights`.
        weights: [P] float32, in the order of network.parameters().
        gradient: [P] float32, the derivative of the loss by the weights, 0 for those of frozen parameters
            (requires_grad is False); each `backward` overwrites it.
        gradient_and_loss: [P + 1], the memory of `gradient`, and behind it room for the loss, so that several
            ranks sum up both at once.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.module = network.to(device)
        self._forward: Callable[..., Tensor] = self.module
        parameters = list(self.module.parameters())
        self._shapes = [parameter.shape for parameter in parameters]
        # No output depends on the stand-in of a frozen parameter, so that its gradient is filled with zeros.
        self._differentiated = [
            parameter if parameter.requires_grad else torch.zeros_like(parameter, requires_grad=True)
            for parameter in parameters
        ]
        self.weights = parameters_to_vector(parameters).detach()
        self.gradient_and_loss = self.weights.new_zeros(len(self.weights) + 1)
        self.gradient = self.gradient_and_loss[:-1]
        for parameter, weights in zip(parameters, self.views(self.weights), strict=True):
            parameter.data = weights

    def compute_as(self, config: LearnerConfig) -> None:
        """Computes dense products and convolutions as the config says; weights stay as they are."""
        products = products_by(config.dense_products)
        for module in self.module.modules():
            if isinstance(module, DenseLayer):
                module.products = products
            elif isinstance(module, ImageTorso):
                module.lay_out(config.convolution_layout)

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

    @torch.no_grad()
    def plain_weights(self) -> Tensor:
        """A copy of the weights [P], with which the network computes the same without spectral norm."""
        normalized = {layer.weight: layer.normalized() for layer in spectral_layers(self.module)}
        return parameters_to_vector(normalized.get(each, each) for each in self.module.parameters())

    def unfrozen(self) -> list[Tensor]:
        """Views of the weights that are no frozen parameter's; the whole vector where there are none."""
        frozen = [not parameter.requires_grad for parameter in self.module.parameters()]
        if not any(frozen):
            return [self.weights]
        return [view for view, still in zip(self.views(self.weights), frozen, strict=True) if not still]

    def pack(self) -> None:
        """Makes `evaluate` faster for the present weights. Repeat it after each change of the weights."""
        for module in self.module.modules():
            if isinstance(module, Linear | ImageTorso):
                module.pack()

    @torch.no_grad()
    def evaluate(self, observations: Observations, *fractions: Tensor) -> Tensor:
        """[B, *shape], or a dict of parts -> outputs; keeps nothing for `backward`."""
        return self._forward(observations, *fractions)

    def forward(self, obs_tm1: Observations, *fractions: Tensor) -> Tensor:
        """[B, *shape], or a dict of parts -> outputs, detached; keeps what `backward` needs."""
        with torch.enable_grad():
            self._outputs = self._forward(obs_tm1, *fractions)
        return torch.detach(self._outputs)

    def forward_pair(self, obs_tm1: Observations, obs_t: Observations) -> tuple[Tensor, Tensor]:
        """Outputs for both observations; keeps what `backward` needs of the first."""
        return self.forward(obs_tm1), self.evaluate(obs_t)

    def evaluate_pair(self, obs_tm1: Observations, obs_t: Observations) -> tuple[Tensor, Tensor]:
        """Outputs for both observations; keeps nothing for `backward`."""
        return self.evaluate(obs_tm1), self.evaluate(obs_t)

    def backward(self, output_gradient: Tensor) -> None:
        """Fills `gradient`. output_gradient: dL / doutputs of the last `forward`, in their shape."""
        gradients = torch.autograd.grad(
            self._outputs, self._differentiated, output_gradient, materialize_grads=True
        )
        # One copy of each piece. Accumulating would first fill the vector with zeros, then read it again.
        torch.cat([piece.reshape(-1) for piece in gradients], out=self.gradient)
