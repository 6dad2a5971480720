"""The networks that map observations to Q-values, or to distributions of returns.

Owns architectures; must not import the learning loop, nor anything of the replay service but field names.
"""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.batch import Observations
from learner.config import (
    LearnerConfig,
    NetworkSpec,
    convolved,
    is_import_path,
    is_plain,
    output_shape,
    resolve_network,
)
from learner.networks.inputs import features
from learner.networks.products import Linear
from learner.networks.streams import ImplicitQuantiles, TorsoAndStreams
from learner.networks.torsos import (
    DenseTorso,
    Encoder,
    ImpalaTorso,
    JoinedTorso,
    MinatarTorso,
    NatureTorso,
)
from replay_service.block import OBSERVATION

CONVOLUTIONS: dict[str, tuple[type[NatureTorso | ImpalaTorso | MinatarTorso], int]] = {
    "nature_cnn": (NatureTorso, 512),
    "impala_cnn": (ImpalaTorso, 256),
    "minatar_cnn": (MinatarTorso, 128),
}
"""Torso of each image network, and the width of the layer between it and the outputs, as in the papers."""


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """New tensors are float32 on the CPU within, whatever the program, or an environment in it, has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@_usual_defaults()
def build_network(spec: NetworkSpec, config: LearnerConfig) -> nn.Module:
    """A freshly initialized network [B, *observation_shape] -> [B, *output_shape(spec, config)] float32.

    For observations of several arrays it takes a dict, part name -> [B, *shape].
    A custom one is in eval() mode: to act, evaluate or export it a caller has nothing to do.
    parameters() come layer by layer, weight [out, in] then bias: a plain MLP's flat vector is W1, b1, W2, b2,
    …; a table's is [S, A], row by row, initially zero. Draws from torch's global generator.

    Raises:
        ValueError: the network that config names does not fit the observations, or cannot be imported.
    """
    network = resolve_network(spec, config)
    outputs = output_shape(spec, config)
    if is_import_path(network):
        return custom_network(network, spec, config)
    if network == "table":
        assert spec.num_states is not None, "resolve_network gives a table to Discrete observations only"
        table = nn.Embedding(spec.num_states, math.prod(outputs))
        nn.init.zeros_(table.weight)
        return table if config.head == "q" else nn.Sequential(table, nn.Unflatten(1, outputs))
    if network == "mlp" and is_plain(config) and not spec.parts:
        sizes = (math.prod(spec.observation_shape), *config.hidden_sizes, spec.num_actions)
        return Mlp(sizes, pixels=spec.is_pixels)
    encoders = {name: encoder(array, network, config) for name, array in spec.arrays.items()}
    torso = JoinedTorso(encoders) if spec.parts else encoders[OBSERVATION]
    hidden = config.image_hidden_size or (
        CONVOLUTIONS[network][1] if network in CONVOLUTIONS else config.hidden_sizes[-1]
    )
    if config.head == "iqn":
        return ImplicitQuantiles(torso, hidden, spec.num_actions, config)
    return TorsoAndStreams(torso, hidden, outputs, config)


def encoder(array: NetworkSpec, network: str, config: LearnerConfig) -> Encoder:
    """The torso for one array: the named convolutions where it is an image that they fit, else the layers of
    the MLP below its last hidden one."""
    image = convolved(network, array)
    if image is not None:
        return CONVOLUTIONS[network][0](image, config)
    sizes = (math.prod(array.observation_shape), *config.hidden_sizes[:-1])
    return DenseTorso(sizes, config.layer_norm, pixels=array.is_pixels)


class Mlp(nn.Module):
    """Fully connected layers with ReLU between them; sizes are [D, hidden…, A]."""

    def __init__(self, sizes: tuple[int, ...], *, pixels: bool = False) -> None:
        super().__init__()
        self.pixels = pixels
        self.layers = nn.ModuleList(Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(sizes))

    def forward(self, observations: Tensor) -> Tensor:
        """[B, *shape] -> [B, A]."""
        hidden = features(observations, pixels=self.pixels)
        for layer in self.layers[:-1]:
            hidden = functional.relu(layer(hidden))
        q: Tensor = self.layers[-1](hidden)
        return q


def custom_network(path: str, spec: NetworkSpec, config: LearnerConfig) -> nn.Module:
    """The network that the factory at package.module:factory returns for (spec, config), in eval() mode.

    Raises:
        ValueError: there is no such factory, or it returns no module, or one whose outputs have another shape
            or which holds buffers: only parameters travel to the actors.
    """
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"learner.network is {path}: {error}") from error
    network = factory(spec, config)
    if not isinstance(network, nn.Module):
        raise ValueError(f"learner.network is {path}, which returns {type(network).__name__}, not nn.Module")
    buffers = network.state_dict().keys() - dict(network.named_parameters()).keys()
    if buffers:
        raise ValueError(
            f"learner.network is {path}, which holds buffers ({', '.join(sorted(buffers))}): only parameters "
            "travel to the actors, so use layer norm, not batch norm"
        )
    network.eval()
    with torch.no_grad():
        outputs = network(zero_observations(spec, 2, torch.device("cpu")))
    expected = (2, *output_shape(spec, config))
    if tuple(outputs.shape) != expected:
        raise ValueError(
            f"learner.network is {path}, which returns {list(outputs.shape)} for 2 observations, "
            f"expected {list(expected)}"
        )
    return network


def zero_observations(spec: NetworkSpec, batch_size: int, device: torch.device) -> Observations:
    """batch_size observations in the shapes and dtypes of the spec, all zero."""
    zeros = {
        name: torch.as_tensor(
            np.zeros((batch_size, *array.observation_shape), array.observation_dtype), device=device
        )
        for name, array in spec.arrays.items()
    }
    return zeros if spec.parts else zeros[OBSERVATION]
