"""A network whose weights are one vector, as is their gradient; its forward and backward passes.

Owns that layout and the passes: by autograd, by hand, in bfloat16, compiled; must not import optimizers,
numpy or the replay service.
"""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from learner.batch import Observations
from learner.config import LearnerConfig, NetworkSpec, is_import_path
from learner.core import Note
from learner.networks.build import Mlp, build_network, zero_observations
from learner.networks.inputs import features
from learner.networks.products import Linear, linear_relu, product
from learner.networks.spectral import spectral_layers


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
        """The weights [P] with which the network computes the same without spectral norm.

        They are `weights` itself where there is none, else a copy with the normalized weights.
        """
        normalized = {layer.weight: layer.normalized() for layer in spectral_layers(self.module)}
        if not normalized:
            return self.weights
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
            if isinstance(module, Linear):
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

    def backward(self, output_gradient: Tensor) -> None:
        """Fills `gradient`. output_gradient: dL / doutputs of the last `forward`, in their shape."""
        gradients = torch.autograd.grad(
            self._outputs, self._differentiated, output_gradient, materialize_grads=True
        )
        # One copy of each piece. Accumulating would first fill the vector with zeros, then read it again.
        torch.cat([piece.reshape(-1) for piece in gradients], out=self.gradient)


class FlatMlp(FlatNetwork):
    """A FlatNetwork for an MLP, with passes written by hand: the numbers of autograd without its bookkeeping.

    At batch 64 autograd costs more than the matrix products that it records.
    """

    def __init__(self, network: Mlp, device: torch.device) -> None:
        super().__init__(network, device)
        self._pixels = network.pixels
        weights, gradients = self.views(self.weights), self.views(self.gradient)
        self._weights, self._biases = weights[0::2], weights[1::2]
        self._weight_gradients, self._bias_gradients = gradients[0::2], gradients[1::2]

    def evaluate(self, observations: Observations, *_: Tensor) -> Tensor:
        """[B, *shape] -> Q-values [B, A]; keeps nothing for `backward`."""
        return self._last_layer(self._layer_inputs(observations))

    def forward(self, obs_tm1: Observations, *_: Tensor) -> Tensor:
        """[B, *shape] -> Q-values [B, A]; keeps the inputs of each layer for `backward`."""
        self._inputs = self._layer_inputs(obs_tm1)
        return self._last_layer(self._inputs)

    def forward_pair(self, obs_tm1: Observations, obs_t: Observations) -> tuple[Tensor, Tensor]:
        """Two [B, *shape] -> Q-values [B, A] of each, in one pass: fewer calls for the same arithmetic."""
        assert isinstance(obs_tm1, Tensor)
        assert isinstance(obs_t, Tensor)
        q_tm1, q_t = self.forward(torch.cat((obs_tm1, obs_t))).chunk(2)
        return q_tm1, q_t

    def backward(self, output_gradient: Tensor) -> None:
        """Fills `gradient`. output_gradient: dL / dQ [B, A] of the first B Q-values of the last forward."""
        for layer in reversed(range(len(self._weights))):
            inputs = self._inputs[layer][: len(output_gradient)]
            product(output_gradient.t(), inputs, out=self._weight_gradients[layer])
            torch.sum(output_gradient, dim=0, out=self._bias_gradients[layer])
            if layer > 0:
                # The output gradient of the layer below. These inputs are its outputs relu(z) >= 0, so their
                # sign is the derivative of relu at z.
                output_gradient = product(output_gradient, self._weights[layer]).mul_(inputs.sign())

    def _layer_inputs(self, observations: Observations) -> list[Tensor]:
        """The inputs of each layer: the features [B, D], then every hidden activation [B, H]."""
        assert isinstance(observations, Tensor), "an observation of several parts gets no Mlp"
        inputs = [features(observations, pixels=self._pixels)]
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            inputs.append(linear_relu(inputs[-1], weight, bias))
        return inputs

    def _last_layer(self, inputs: list[Tensor]) -> Tensor:
        return torch.addmm(self._biases[-1], inputs[-1], self._weights[-1].t())


def flat_network(spec: NetworkSpec, config: LearnerConfig, device: torch.device) -> FlatNetwork:
    """The configured network over one weight vector; a plain MLP gets passes by hand, others use autograd."""
    network = build_network(spec, config)
    if config.precision == "bfloat16":
        return FlatNetwork(InBfloat16(network, device), device)
    # A user's own Mlp may be derived from it, or frozen in part.
    if isinstance(network, Mlp) and not is_import_path(config.network):
        return FlatMlp(network, device)
    return FlatNetwork(network, device)


class InBfloat16(nn.Module):
    """A network computed under autocast to bfloat16; its weights and outputs are float32."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._network = network
        self._device_type = device.type

    def forward(self, observations: Observations, *fractions: Tensor) -> Tensor:
        """[B, *shape], or a dict of parts -> outputs, float32."""
        with torch.autocast(self._device_type, torch.bfloat16):
            outputs: Tensor = self._network(observations, *fractions)
        return outputs.float()


def compile_passes(
    online: FlatNetwork, target: FlatNetwork, spec: NetworkSpec, config: LearnerConfig
) -> Note:
    """Compiles the passes of both networks for learner.batch_size.

    Without a compiler, leaves them as they are. Returns a sentence about it for the run's user.
    """
    if isinstance(online, FlatMlp):
        return Note(
            "warning", "learner.compile changes nothing: the passes of a plain MLP are written by hand"
        )
    began = perf_counter()
    observations = zero_observations(spec, config.batch_size, online.weights.device)
    try:
        for network in (online, target):
            network.compile()
            network.evaluate(observations)
        online.backward(torch.zeros_like(online.forward(observations)))
    except RuntimeError as error:  # as are all errors of torch.compile
        for network in (online, target):
            network.uncompile()
        reason = str(error).strip().splitlines()[0]
        return Note(
            "warning", f"learner.compile is true, but torch.compile failed; going on without: {reason}"
        )
    return Note("info", f"the learner's passes were compiled in {perf_counter() - began:.1f} s")
