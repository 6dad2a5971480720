"""MinAtar games (Young and Tian 2019, arXiv:1903.03176).

Owns their registration and a fix of their resets; must not know of policies, transitions or blocks.
"""

import importlib
from typing import Any, Final

import gymnasium as gym

NAMESPACE = "MinAtar/"
IMAGE_LAYOUT: Final = "HWC"
"""Stated, because the frames of Seaquest have 10 x 10 x 10 values."""


def register() -> None:
    """Registers the games with gymnasium, once. Raises ImportError if the package is missing."""
    package = importlib.import_module("minatar.gym")
    if not any(name.startswith(NAMESPACE) for name in gym.registry):
        package.register_envs()


class FreshStart(gym.Wrapper[Any, Any, Any, Any]):
    """Forgets the last action at a reset.

    MinAtar repeats the last action with probability 0.1, even at the start of an episode: without this
    wrapper an episode would depend on the one before it, whatever its seed.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Resets the game, with a no-op as its last action."""
        self.get_wrapper_attr("game").last_action = 0
        return self.env.reset(seed=seed, options=options)
