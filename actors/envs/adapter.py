"""Between an environment as its user makes it and the frames and action numbers that a policy knows.

Owns the two conversions for one environment; must not know of vectors, rows or blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs.discretize import DiscretizedActions
from actors.envs.make import make_lane
from actors.envs.observations import FrameMaker, Part, parts_of
from replay_service.block import FrameField


@dataclass(frozen=True)
class Adapter:
    """table: raw actions [A, *shape], if binned; first_action: the environment's own number of action 0."""

    maker: FrameMaker
    table: np.ndarray | None = None
    first_action: int = 0

    @property
    def spec(self) -> EnvSpec:
        """Of the environment."""
        return self.maker.spec

    def frame(self, observation: Any, action_mask: Any = None) -> np.ndarray:
        """The frame [1, *shape], or record [1], of an observation and the mask [A] of its actions.

        Raises ValueError on another shape, and on a mask that is missing or not wanted.
        """
        return self.maker.of_one(observation, action_mask)

    def action(self, index: int) -> Any:
        """The environment's own action with number index, 0 … A - 1."""
        return self.first_action + index if self.table is None else self.table[index].copy()


def make_adapter(config: EnvConfig, spec: EnvSpec) -> Adapter:
    """The adapter of config's environment. Raises EnvError as actors.envs.make.probe does."""
    if spec.backend == "native":
        # Native forms are only taken where no wrapper is needed.
        return plain_adapter(spec)
    env = make_lane(config)
    try:
        parts, actions = parts_of(env.observation_space), env.action_space
        table = None
        layer: gym.Env[Any, Any] = env
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, DiscretizedActions):
                table = layer.table
            layer = layer.env
    finally:
        env.close()
    first_action = int(actions.start) if table is None and isinstance(actions, spaces.Discrete) else 0
    return Adapter(FrameMaker(parts, spec), table, first_action)


def plain_adapter(spec: EnvSpec) -> Adapter:
    """For an environment whose observations are one array as the spec has it and whose actions begin at 0."""
    field = FrameField("", spec.observation_dtype, spec.observation_shape)
    return Adapter(FrameMaker((Part((), field, spec.observation_shape),), spec))
