"""The passes of the network of MinAtar, written by hand over its flat weights.

Owns these passes; must not import optimizers, numpy or the replay service.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from learner.batch import Observations
from learner.config import LearnerConfig, NetworkSpec, resolve_network
from learner.networks.flat import FlatNetwork
from learner.networks.flat_mlp import FlatMlp
from learner.networks.inputs import images
from learner.networks.streams import TorsoAndStreams
from learner.networks.torsos import MinatarTorso


class FlatMinatar(FlatMlp):
    """A FlatMlp whose first layer is MinAtar's convolution; the other layers are dense.

    Updates take two thirds of the time that they take by autograd.
    """

    def __init__(self, network: TorsoAndStreams, outputs: tuple[int, ...], device: torch.device) -> None:
        super().__init__(network, device)
        assert isinstance(network.torso, MinatarTorso)
        self._torso, self._outputs_shape = network.torso, outputs
        self._backward_layout = torch.channels_last

    def compute_as(self, config: LearnerConfig) -> None:
        """See FlatNetwork."""
        super().compute_as(config)
        # This pass is 1.6 times as fast with channels last, unlike the forward pass (on a Zen 5).
        is_first = config.convolution_layout == "channels_first"
        self._backward_layout = torch.contiguous_format if is_first else torch.channels_last

    def evaluate(self, observations: Observations, *_: Tensor) -> Tensor:
        """[B, *shape] -> outputs; keeps nothing for `backward`. Layers may be packed."""
        return FlatNetwork.evaluate(self, observations)

    def backward(self, output_gradient: Tensor) -> None:
        """Fills `gradient`. output_gradient: dL / doutputs of the first B outputs of the last forward."""
        super().backward(output_gradient.flatten(1))

    def _differentiate(self, layer: int, inputs: Tensor, output_gradient: Tensor) -> None:
        if layer > 0:
            super()._differentiate(layer, inputs, output_gradient)
            return
        weight = self._weights[0]
        height, width = (side - 2 for side in inputs.shape[2:])
        maps_gradient = output_gradient.view(-1, len(weight), height, width)
        torch.sum(maps_gradient, dim=(0, 2, 3), out=self._bias_gradients[0])
        planes, maps_gradient = (
            array.contiguous(memory_format=self._backward_layout) for array in (inputs, maps_gradient)
        )
        gradient: Tensor = conv2d_weight(planes, weight.shape, maps_gradient)  # type: ignore[no-untyped-call]
        self._weight_gradients[0].copy_(gradient)

    def _first_inputs(self, observations: Tensor) -> Tensor:
        """The planes [B, channels, H, W]."""
        return images(observations, self._torso.image, self._torso.layout)

    def _activations(self, layer: int, inputs: Tensor) -> Tensor:
        """As in an MLP; of layer 0 the maps, flat."""
        if layer > 0:
            return super()._activations(layer, inputs)
        return functional.conv2d(inputs, self._weights[0], self._biases[0]).relu_().flatten(1)

    def _last_layer(self, inputs: list[Tensor]) -> Tensor:
        return super()._last_layer(inputs).view(-1, *self._outputs_shape)


def has_passes_by_hand(spec: NetworkSpec, config: LearnerConfig) -> bool:
    """Whether the network is MinAtar's, of nothing but its convolution, linear layers and ReLU."""
    more = config.head == "iqn" or config.dueling or config.noisy or config.layer_norm or config.pool_size
    computed_otherwise = config.compile or config.precision != "float32"
    ours = resolve_network(spec, config) == "minatar_cnn" and not spec.parts
    return ours and not more and not computed_otherwise
