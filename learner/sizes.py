"""About how large a network is, and how much one observation costs, before it is built.

Owns these estimates; must not import torch, so that a driver can make them cheaply.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

from learner.config import (
    ImageShape,
    LearnerConfig,
    NetworkSpec,
    convolved,
    feature_map,
    is_import_path,
    output_shape,
)


def approximate_weights(spec: NetworkSpec, config: LearnerConfig) -> int:
    """About how many weights the network has, from below: exact for tables; of convolutions only the features
    that they hand on, of a network by import path nothing. config.network is resolved."""
    if config.network == "table":
        return (spec.num_states or 0) * math.prod(output_shape(spec, config))
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in dense_layers(spec, config))


def dense_layers(spec: NetworkSpec, config: LearnerConfig) -> list[tuple[int, int]]:
    """Inputs and outputs of the network's dense layers; of a dueling network those of one output layer, of a
    table and of a network by import path none. config.network is resolved."""
    if config.network == "table" or is_import_path(config.network):
        return []
    layers: list[tuple[int, int]] = []
    features = 0
    for array in spec.arrays.values():
        image = convolved(config.network, array)
        if image is None:
            sizes = (math.prod(array.observation_shape), *config.hidden_sizes[:-1])
            layers += pairwise(sizes)
            features += sizes[-1]
        else:
            channels = {"nature_cnn": 64, "minatar_cnn": 16}.get(config.network, 32 * config.impala_width)
            size = math.prod(feature_map(config.network, image))
            features += channels * (size if config.pool_size is None else config.pool_size**2)
    papers = {"nature_cnn": 512, "impala_cnn": 256, "minatar_cnn": 128}.get(config.network)
    hidden = config.image_hidden_size or papers or config.hidden_sizes[-1]
    streams = 2 if config.dueling else 1
    return [*layers, *[(features, hidden)] * streams, (hidden, math.prod(output_shape(spec, config)))]


def approximate_products(spec: NetworkSpec, config: LearnerConfig) -> int:
    """About how many multiplications one observation takes; of a network by import path none are known."""
    return approximate_weights(spec, config) + sum(products for products, _ in _convolutions(spec, config))


def approximate_activations(spec: NetworkSpec, config: LearnerConfig) -> int:
    """About how many float32 an update holds for each transition, from below: its observations, and what each
    layer hands on, with the gradient of that. config.network is resolved."""
    observations = sum(math.prod(array.observation_shape) for array in spec.arrays.values())
    dense = sum(fan_out for _, fan_out in dense_layers(spec, config))
    return 2 * (observations + dense + sum(outputs for _, outputs in _convolutions(spec, config)))


def _convolutions(spec: NetworkSpec, config: LearnerConfig) -> Iterator[tuple[int, int]]:
    """Multiplications and outputs of each convolution, for one observation."""
    for array in spec.arrays.values():
        image = convolved(config.network, array)
        if image is not None:
            yield from _convolutions_of(image, config)


def _convolutions_of(image: ImageShape, config: LearnerConfig) -> Iterator[tuple[int, int]]:
    channels, height, width = image.channels, image.height, image.width
    if config.network == "impala_cnn":
        for out in (16, 32, 32):
            out *= config.impala_width
            yield 9 * channels * out * height * width, out * height * width
            height, width, channels = -(-height // 2), -(-width // 2), out
            yield from [(9 * out * out * height * width, out * height * width)] * 4
        return
    layers = {"minatar_cnn": ((3, 1, 16),)}.get(config.network, ((8, 4, 32), (4, 2, 64), (3, 1, 64)))
    for kernel, stride, out in layers:
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        yield kernel * kernel * channels * out * height * width, out * height * width
        channels = out
