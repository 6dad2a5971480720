"""Between an environment as its user makes it and the frames and action numbers that a policy knows.

Owns the two conversions for one environment; must not know of vectors, rows or blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.discretize import DiscretizedActions
from actors.envs import make_lane


@dataclass(frozen=True)
class Adapter:
    """raw_space: the observations to flatten, if they must be; table: raw actions [A, *shape], if binned."""

    spec: EnvSpec
    raw_space: spaces.Space[Any] | None
    table: np.ndarray | None
    first_state: int
    first_action: int

    def frame(self, observation: Any) -> np.ndarray:
        """The frame [*observation_shape] of an observation. Raises ValueError on another shape."""
        if self.raw_space is not None:
            observation = spaces.flatten(self.raw_space, observation)
        frame = np.asarray(observation)
        if frame.shape != self.spec.observation_shape:
            raise ValueError(
                f"the observation has shape {frame.shape}; this policy takes {self.spec.observation_shape}"
            )
        return (frame - self.first_state if self.first_state else frame).astype(self.spec.observation_dtype)

    def action(self, index: int) -> Any:
        """The environment's own action with number index, 0 … A - 1."""
        return self.first_action + index if self.table is None else self.table[index].copy()


def make_adapter(config: EnvConfig, spec: EnvSpec) -> Adapter:
    """The adapter of config's environment. Raises EnvError as actors.envs.probe does."""
    if spec.backend == "native":
        # Native forms are only taken where no wrapper is needed.
        return Adapter(spec, None, None, 0, 0)
    env = make_lane(config)
    try:
        space, actions = env.observation_space, env.action_space
        raw_space = table = None
        layer: gym.Env[Any, Any] = env
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, FlattenObservation):
                raw_space = layer.env.observation_space
            if isinstance(layer, DiscretizedActions):
                table = layer.table
            layer = layer.env
    finally:
        env.close()
    return Adapter(spec, raw_space, table, _start(space), 0 if table is not None else _start(actions))


def _start(space: spaces.Space[Any]) -> int:
    return int(space.start) if isinstance(space, spaces.Discrete) else 0
