"""MinAtar games (Young and Tian 2019, arXiv:1903.03176): registering them, and episodes that stand alone.

Owns what the package itself leaves open; must not know of policies, rows or blocks.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym

NAMESPACE = "MinAtar/"


def register() -> None:
    """Makes sure that gymnasium knows the games. Raises ImportError where the package is missing."""
    package = importlib.import_module("minatar.gym")
    if not any(name.startswith(NAMESPACE) for name in gym.registry):
        package.register_envs()


class FreshStart(gym.Wrapper[Any, Any, Any, Any]):
    """Forgets at a reset which action came last.

    MinAtar repeats it with probability 0.1, also at the start of an episode: without this an episode would
    depend on the one before it, whatever its seed.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """As the game's, beginning after a no-op."""
        self.get_wrapper_attr("game").last_action = 0
        return self.env.reset(seed=seed, options=options)
