"""From one flat weight vector to parameters by name, and back.

Owns that mapping, and the facts that two networks must share; must not import the loop or any transport.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from learner.config import LearnerConfig, NetworkSpec
from learner.networks.build import build_network
from learner.normalization import tail_size

NORMALIZER_TAIL = "observation_normalizer"
"""Name of the normalizer's tail: [2 D] float32, means and inverse deviations of a frame's D values."""


def seeded_network(spec: NetworkSpec, config: LearnerConfig) -> nn.Module:
    """The configured network on the CPU, without spectral norm: weights travel as it has made them.

    Leaves torch's global generator as it was.
    """
    with torch.random.fork_rng(devices=[]):
        return build_network(spec, replace(config, spectral_norm=False))


def named_weights(spec: NetworkSpec, config: LearnerConfig, flat: np.ndarray) -> dict[str, np.ndarray]:
    """Parameter name -> view of its part of flat [P] float32, in its shape; last, the normalizer's tail.

    Raises ValueError if the network has another number of weights.
    """
    shapes = _shapes(spec, config)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"the weights have shape {list(flat.shape)}, this network takes [{sum(sizes)}]")
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    return {name: piece.reshape(shapes[name]) for name, piece in zip(shapes, pieces, strict=True)}


def flat_weights(spec: NetworkSpec, config: LearnerConfig, named: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vector [P] float32 that `named_weights` splits into `named`.

    Raises ValueError naming the parameters that differ, with both shapes.
    """
    expected = _shapes(spec, config)
    given = {name: list(array.shape) for name, array in named.items()}
    differing = [
        f"{name} is {given.get(name, 'missing')} there, {expected.get(name, 'missing')} here"
        for name in dict.fromkeys((*expected, *given))
        if given.get(name) != expected.get(name)
    ]
    if differing:
        raise ValueError("; ".join(differing))
    return np.concatenate([np.asarray(named[name], np.float32).ravel() for name in expected])


def network_facts(spec: NetworkSpec, config: LearnerConfig) -> dict[str, object]:
    """The facts that must agree, besides shapes, before another network may use the weights; as JSON."""
    facts: dict[str, object] = {
        "network": config.network,
        "observations": {
            name: [array.observation_dtype, list(array.observation_shape)]
            for name, array in spec.arrays.items()
        },
        "pixels": list(spec.pixels),
        "image_layouts": dict(spec.image_layouts) if config.network not in ("mlp", "table") else {},
        "states": spec.num_states,
        "stack": spec.stack,
        "actions": spec.num_actions,
        "head": config.head,
    }
    if config.head == "c51":
        facts["value_range"] = list(config.value_range)
    if config.spectral_norm:
        facts["spectral_norm"] = True
    return facts


def _shapes(spec: NetworkSpec, config: LearnerConfig) -> dict[str, list[int]]:
    network = seeded_network(spec, config)
    shapes = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    return shapes | ({NORMALIZER_TAIL: [tail_size(spec)]} if config.normalize_observations else {})
