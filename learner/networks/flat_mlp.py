"""The passes of a plain MLP, written by hand over its flat weights.

Owns these passes; must not import optimizers, numpy or the replay service.
"""

import torch
from torch import Tensor, nn

from learner.batch import Observations
from learner.config import LearnerConfig
from learner.networks.build import Mlp
from learner.networks.flat import FlatNetwork
from learner.networks.inputs import features
from learner.networks.products import BY_SIZE, products_by


class FlatMlp(FlatNetwork):
    """A FlatNetwork for an MLP, with passes written by hand: the numbers of autograd without its bookkeeping.

    At batch 64 autograd costs more than the matrix products that it records.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__(network, device)
        weights, gradients = self.views(self.weights), self.views(self.gradient)
        self._weights, self._biases = weights[0::2], weights[1::2]
        self._weight_gradients, self._bias_gradients = gradients[0::2], gradients[1::2]
        self._products = BY_SIZE

    def compute_as(self, config: LearnerConfig) -> None:
        """See FlatNetwork."""
        super().compute_as(config)
        self._products = products_by(config.dense_products)

    def evaluate(self, observations: Observations, *_: Tensor) -> Tensor:
        """[B, *shape] -> Q-values [B, A]; keeps nothing for `backward`."""
        return self._last_layer(self._layer_inputs(observations))

    def forward(self, obs_tm1: Observations, *_: Tensor) -> Tensor:
        """[B, *shape] -> Q-values [B, A]; keeps the inputs of each layer for `backward`."""
        self._inputs = self._layer_inputs(obs_tm1)
        return self._last_layer(self._inputs)

    def forward_pair(self, obs_tm1: Observations, obs_t: Observations) -> tuple[Tensor, Tensor]:
        """Two [B, *shape] -> Q-values [B, A] of each, in one pass: fewer calls for the same arithmetic."""
        q_tm1, q_t = self.forward(_joined(obs_tm1, obs_t)).chunk(2)
        return q_tm1, q_t

    def evaluate_pair(self, obs_tm1: Observations, obs_t: Observations) -> tuple[Tensor, Tensor]:
        """The same, but keeps nothing for `backward`."""
        q_tm1, q_t = self._last_layer(self._layer_inputs(_joined(obs_tm1, obs_t))).chunk(2)
        return q_tm1, q_t

    def backward(self, output_gradient: Tensor) -> None:
        """Fills `gradient`. output_gradient: dL / dQ [B, A] of the first B Q-values of the last forward."""
        for layer in reversed(range(len(self._weights))):
            inputs = self._inputs[layer][: len(output_gradient)]
            self._differentiate(layer, inputs, output_gradient)
            if layer > 0:
                # The output gradient of the layer below. These inputs are its outputs relu(z) >= 0, so their
                # sign is the derivative of relu at z.
                output_gradient = self._products.product(output_gradient, self._weights[layer])
                output_gradient.mul_(inputs.sign())

    def _differentiate(self, layer: int, inputs: Tensor, output_gradient: Tensor) -> None:
        """Fills the gradient of one layer's parameters; inputs [B, in], output_gradient [B, out]."""
        self._products.product(output_gradient.t(), inputs, out=self._weight_gradients[layer])
        torch.sum(output_gradient, dim=0, out=self._bias_gradients[layer])

    def _layer_inputs(self, observations: Observations) -> list[Tensor]:
        """The inputs of each layer: the features [B, D], then every hidden activation [B, H]."""
        assert isinstance(observations, Tensor), "an observation of several parts gets no Mlp"
        inputs = [self._first_inputs(observations)]
        for layer in range(len(self._weights) - 1):
            inputs.append(self._activations(layer, inputs[-1]))
        return inputs

    def _first_inputs(self, observations: Tensor) -> Tensor:
        assert isinstance(self.module, Mlp)
        return features(observations, pixels=self.module.pixels)

    def _activations(self, layer: int, inputs: Tensor) -> Tensor:
        """Inputs [B, in] -> what a layer below the last one gives after its ReLU [B, out]."""
        return self._products.linear_relu(inputs, self._weights[layer], self._biases[layer])

    def _last_layer(self, inputs: list[Tensor]) -> Tensor:
        return torch.addmm(self._biases[-1], inputs[-1], self._weights[-1].t())


def _joined(obs_tm1: Observations, obs_t: Observations) -> Tensor:
    """Two [B, *shape] -> [2 B, *shape]."""
    assert isinstance(obs_tm1, Tensor)
    assert isinstance(obs_t, Tensor)
    return torch.cat((obs_tm1, obs_t))
