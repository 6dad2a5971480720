"""About how large a network is, and how much one observation costs, before it is built.

Owns these estimates; must not import torch, so that a driver can make them cheaply.
"""

import math
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
    images = [convolved(config.network, array) for array in spec.arrays.values()]
    convolutions = sum(_convolution_products(config, image) for image in images if image is not None)
    return approximate_weights(spec, config) + convolutions


def _convolution_products(config: LearnerConfig, image: ImageShape) -> int:
    """Multiplications of the convolutions for one image."""
    channels, height, width, products = image.channels, image.height, image.width, 0
    if config.network == "impala_cnn":
        for out in (16, 32, 32):
            out *= config.impala_width
            products += 9 * channels * out * height * width
            height, width, channels = -(-height // 2), -(-width // 2), out
            products += 4 * 9 * out * out * height * width
        return products
    layers = {"minatar_cnn": ((3, 1, 16),)}.get(config.network, ((8, 4, 32), (4, 2, 64), (3, 1, 64)))
    for kernel, stride, out in layers:
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        products += kernel * kernel * channels * out * height * width
        channels = out
    return products
