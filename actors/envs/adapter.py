"""From a user's environment to the frames and action numbers of a policy, and back.

Owns the two conversions for one environment; must not know of vector environments, transitions or blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs.discretize import DiscretizedActions
from actors.envs.make import make_lane
from actors.envs.observation_spaces import parts_of
from actors.envs.observations import FrameMaker, Part
from replay_service.block import FrameField


@dataclass(frozen=True)
class Adapter:
    """Converts observations to frames, and action numbers to the environment's own actions.

    table: those actions [A, *shape], if they are binned; first_action: the environment's own number of
    action 0, if they are not.
    """

    maker: FrameMaker
    table: np.ndarray | None = None
    first_action: int = 0

    def frame(self, observation: Any, action_mask: Any = None) -> np.ndarray:
        """The frame [1, *shape], or record [1], of an observation and the mask [A] of its actions.

        Raises ValueError on another shape, and if a mask is missing or not wanted.
        """
        return self.maker.of_one(observation, action_mask)

    def action(self, index: int) -> Any:
        """The environment's own action for action number index, 0 to A-1."""
        return self.first_action + index if self.table is None else self.table[index].copy()


def make_adapter(config: EnvConfig, spec: EnvSpec) -> Adapter:
    """The adapter of config's environment. Raises EnvError as actors.envs.make.probe does."""
    if spec.backend == "native":
        # A native form is only used if it needs no wrapper.
        return plain_adapter(spec)
    env = make_lane(config)
    try:
        maker = FrameMaker(parts_of(env.observation_space), spec)
        if isinstance(env, DiscretizedActions):
            return Adapter(maker, env.table)
        assert isinstance(env.action_space, spaces.Discrete)
        return Adapter(maker, first_action=int(env.action_space.start))
    finally:
        env.close()


def plain_adapter(spec: EnvSpec) -> Adapter:
    """An adapter for observations that are one array of spec's shape, and actions that begin at 0."""
    field = FrameField("", spec.observation_dtype, spec.observation_shape)
    return Adapter(FrameMaker((Part((), field, spec.observation_shape),), spec))
