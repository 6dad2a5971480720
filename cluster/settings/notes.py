"""What the user of a configuration should read: settings without effect, and images that are too large.

Owns these sentences; must not import torch or ray.
"""

from collections.abc import Iterator

from actors.config import ActorsConfig
from actors.core import EnvSpec
from cluster.settings.resolve import network_spec
from cluster.settings.resolved import ResolvedConfig
from learner.config import image_shape

_LARGE_SIDE = 128
_DECAY = ("epsilon_start", "epsilon_end", "epsilon_decay_env_steps")


def setting_notes(config: ResolvedConfig, spec: EnvSpec) -> Iterator[str]:
    """Sentences about settings and the observations that they meet."""
    if config.actors.epsilon_ladder is not None:
        plain = ActorsConfig()
        for name in _DECAY:
            if getattr(config.actors, name) != getattr(plain, name):
                yield (
                    f"actors.{name} is {getattr(config.actors, name)}, which has no effect: "
                    "actors.epsilon_ladder gives each lane its own epsilon"
                )
    if config.learner.network != "nature_cnn":
        return
    for array in network_spec(spec).arrays.values():
        image = image_shape(array)
        if image is not None and min(image.height, image.width) >= _LARGE_SIDE:
            yield (
                f"images of {image.height} x {image.width} make networks large and slow; for 84 x 84, set "
                'env.wrappers=[{"gymnasium.wrappers:ResizeObservation": {shape: [84, 84]}}]'
            )
