"""Continuous and compound action spaces as one flat Discrete space, by a table of actions.

Owns the table and the wrapper; must not import anything of actors but EnvError.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from actors.envs.errors import EnvError

MAX_ACTIONS = 4096


def action_table(space: spaces.Space[Any], bins: int | None) -> np.ndarray:
    """Every action of a Box, MultiDiscrete or MultiBinary space, [A, *space.shape] of space.dtype.

    A Box gives `bins` evenly spaced values from low to high in each dimension (integer boxes: the nearest
    integers); the others give their own values. The last dimension varies fastest.

    Raises EnvError if bins are missing, a bound is infinite, A would exceed 4096, or the space is another.
    """
    if isinstance(space, spaces.MultiDiscrete):
        sizes = [int(size) for size in space.nvec.ravel()]
        values = [start + np.arange(size) for start, size in zip(space.start.ravel(), sizes, strict=True)]
        cure = "wrap the environment so that it offers fewer"
    elif isinstance(space, spaces.MultiBinary):
        sizes = [2] * int(np.prod(space.shape))
        values = [np.arange(2)] * len(sizes)
        cure = "wrap the environment so that it offers fewer"
    elif isinstance(space, spaces.Box):
        if bins is None:
            raise EnvError(f"continuous actions {space}; set env.discretize=5 to act with 5 bins a dimension")
        if not space.is_bounded():
            raise EnvError(
                f"unbounded actions {space}, which cannot be divided into bins; "
                "wrap the environment with gymnasium.wrappers.RescaleAction or bounds of its own"
            )
        low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
        sizes = [bins] * low.size
        values = [np.linspace(a, b, bins) for a, b in zip(low, high, strict=True)]
        cure = "set a smaller env.discretize"
    else:
        raise EnvError(f"actions {space}; Discrete, MultiDiscrete, MultiBinary and Box actions are supported")
    num_actions = int(np.prod(sizes, dtype=np.float64))
    if num_actions > MAX_ACTIONS:
        raise EnvError(
            f"{' x '.join(map(str, sizes))} = {num_actions} flat actions; at most {MAX_ACTIONS} work, {cure}"
        )
    grid = np.stack(np.meshgrid(*values, indexing="ij"), axis=-1).reshape(num_actions, *space.shape)
    if np.issubdtype(space.dtype, np.integer):
        grid = np.rint(grid)
    return grid.astype(space.dtype)


class DiscretizedActions(gym.ActionWrapper[Any, Any, Any]):
    """Takes the number of a row of the action table as its action; the action space is Discrete(A)."""

    def __init__(self, env: gym.Env[Any, Any], bins: int | None) -> None:
        """Raises EnvError as `action_table` does."""
        super().__init__(env)
        self.table = action_table(env.action_space, bins)
        self.action_space = spaces.Discrete(len(self.table))

    def action(self, action: Any) -> np.ndarray:
        """Row `action` of the table; a copy, because an environment may clip its action in place."""
        row: np.ndarray = self.table[action].copy()
        return row
