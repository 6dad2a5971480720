"""What the user of a configuration should read: settings without effect, and images that are too large.

Owns these sentences; must not import torch or ray.
"""

import math
from collections.abc import Iterator

from actors.core import EnvSpec
from cluster.settings.resolve import network_spec
from cluster.settings.resolved import ResolvedActors, ResolvedConfig
from learner.config import image_shape, is_import_path
from learner.sizes import approximate_products, approximate_weights

_LARGE_SIDE = 128

# Measured with one thread a rank, gloo and one core a rank on one machine; see docs/scaling.md.
_FLOPS_PER_SECOND = 50e9
_PASSES = 4  # forward by both networks, and backward, which takes two
_EXCHANGE_SECONDS = 1.5e-3  # most of it waiting for the slower rank, twice
_EXCHANGE_SECONDS_PER_WEIGHT = 4e-9
_WORTH_IT = 5.0
"""Ranks must save this many times what their exchange takes: where it was 2, two were slower than one."""

_DECAY = ("epsilon_start", "epsilon_end", "epsilon_decay_env_steps")


def setting_notes(config: ResolvedConfig, spec: EnvSpec) -> Iterator[str]:
    """Sentences about settings and the observations that they meet."""
    if config.actors.epsilon_ladder is not None:
        plain = ResolvedActors()
        for name in _DECAY:
            if getattr(config.actors, name) != getattr(plain, name):
                yield (
                    f"actors.{name} is {getattr(config.actors, name)}, which has no effect: "
                    "actors.epsilon_ladder gives each lane its own epsilon"
                )
    yield from _rank_notes(config, spec)
    if config.learner.network != "nature_cnn":
        return
    for array in network_spec(spec).arrays.values():
        image = image_shape(array)
        if image is not None and min(image.height, image.width) >= _LARGE_SIDE:
            yield (
                f"images of {image.height} x {image.width} make networks large and slow; for 84 x 84, set "
                'env.wrappers=[{"gymnasium.wrappers:ResizeObservation": {shape: [84, 84]}}]'
            )


def _rank_notes(config: ResolvedConfig, spec: EnvSpec) -> Iterator[str]:
    """Advises against several ranks where averaging their gradients costs too much of what they save."""
    learner, fitted = config.learner, network_spec(spec)
    ranks = learner.num_learners
    if ranks == 1 or learner.device.startswith("cuda") or is_import_path(learner.network):
        return
    flops = 2 * _PASSES * approximate_products(fitted, learner)
    weights = approximate_weights(fitted, learner)
    seconds = learner.batch_size * flops / _FLOPS_PER_SECOND
    saved = seconds * (1.0 - 1.0 / ranks)
    exchange = _EXCHANGE_SECONDS + weights * _EXCHANGE_SECONDS_PER_WEIGHT
    if saved < _WORTH_IT * exchange:
        enough = math.ceil(learner.batch_size * _WORTH_IT * exchange / saved)
        yield (
            f"learner.num_learners = {ranks} will hardly pay on CPUs: it saves some {1e3 * saved:.2g} of the "
            f"{1e3 * seconds:.2g} ms of arithmetic in an update, and averaging {weights:,} weights takes "
            f"{1e3 * exchange:.2g} ms or more (estimates); give 1, or a learner.batch_size of {enough:,}"
        )
