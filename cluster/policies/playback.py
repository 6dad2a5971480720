"""One environment as its user has it, played episode by episode, with pictures where they are asked for.

Owns opening it and the greedy loop; must not import torch or ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs.errors import EnvError
from actors.envs.make import make_atari, make_user_env
from cluster.settings.config import ConfigError
from replay_service.block import ACTION_MASK

_ATARI_SCREEN = {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}
_ATARI_FRAMES_PER_SECOND = 60


class Acts(Protocol):
    """A cluster.policies.evaluate.GreedyPolicy, by its shape alone."""

    def __call__(self, observation: Any, action_mask: Any = None) -> Any:
        """The action for an observation, both as the environment has them."""

    def reset(self) -> None:
        """An episode begins."""


@dataclass(frozen=True, eq=False)
class Moment:
    """What one step brought: the observation to act on next, and whether the episode is over.

    action_mask: info["action_mask"], where the policy wants one.
    """

    observation: Any
    reward: float = 0.0
    ended: bool = False
    action_mask: Any = None


class Stage(Protocol):
    """An environment on show. Observations and actions are the environment's own."""

    observation_space: spaces.Space[Any]
    frames_per_second: float

    def reset(self, seed: int) -> Moment:
        """Begins an episode."""

    def step(self, action: Any) -> Moment:
        """One step."""

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8, what the newest observation looks like. Only where opened with pictures."""

    def close(self) -> None:
        """Closes the environment."""


def open_stage(config: EnvConfig, spec: EnvSpec, *, pictures: bool) -> Stage:
    """The environment that a policy trained on `config` plays.

    Raises:
        ConfigError: pictures are asked for, but the environment draws none.
        EnvError: it cannot be made; the message names the cure.
    """
    if spec.backend == "native" and (eyes := make_atari(config)) is not None:
        screen = make_atari(config, **_ATARI_SCREEN) if pictures else None
        return AtariStage(eyes, screen, spec.max_episode_steps, stacked="stack_num" not in config.kwargs)
    env = make_user_env(config)
    if not pictures:
        return SingleStage(env, masked=spec.action_mask)
    modes = env.metadata.get("render_modes", [])
    env.close()
    if "rgb_array" not in modes:
        raise ConfigError(
            f"{config.id} draws no pictures: its metadata names the render modes {list(modes)}, and a video "
            "needs rgb_array"
        )
    try:
        return SingleStage(make_user_env(config, render_mode="rgb_array"), masked=spec.action_mask)
    except EnvError as error:
        raise ConfigError(
            f"{error}. A video needs an environment that takes render_mode='rgb_array'"
        ) from error


class SingleStage:
    """A gymnasium.Env."""

    def __init__(self, env: gym.Env[Any, Any], *, masked: bool) -> None:
        """masked: whether the policy wants the action masks of env."""
        self._env = env
        self._masked = masked
        self.observation_space = env.observation_space
        self.frames_per_second = float(env.metadata.get("render_fps") or 30.0)

    def reset(self, seed: int) -> Moment:
        """See Stage."""
        observation, info = self._env.reset(seed=seed)
        return Moment(observation, action_mask=self._mask(info))

    def step(self, action: Any) -> Moment:
        """See Stage."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        return Moment(observation, float(reward), bool(terminated or truncated), self._mask(info))

    def picture(self) -> np.ndarray:
        """See Stage."""
        return np.asarray(self._env.render(), np.uint8)

    def close(self) -> None:
        """See Stage."""
        self._env.close()

    def _mask(self, info: dict[str, Any]) -> Any:
        return info.get(ACTION_MASK) if self._masked else None


class AtariStage:
    """The lane of frames that the policy sees and, for pictures, its twin in colour and full size.

    Both get the same seed and actions, so they play the same episode; a step that tells them apart raises.
    """

    observation_space: spaces.Space[Any]

    def __init__(
        self,
        eyes: VectorEnv[Any, Any, Any],
        screen: VectorEnv[Any, Any, Any] | None,
        max_steps: int | None,
        *,
        stacked: bool,
    ) -> None:
        """max_steps: of an episode, which ALE itself does not limit here. stacked: whether eyes' observations
        have a stack axis of 1 that the policy's frames have not.
        """
        self._eyes, self._screen, self._stacked = eyes, screen, stacked
        self._max_steps = max_steps
        self._steps = 0
        space = eyes.single_observation_space
        assert isinstance(space, spaces.Box)
        self.observation_space = spaces.Box(space.low[0], space.high[0], dtype=np.uint8) if stacked else space
        skip = eyes.spec.kwargs.get("frameskip", 4) if eyes.spec else 4
        self.frames_per_second = _ATARI_FRAMES_PER_SECOND / skip

    def reset(self, seed: int) -> Moment:
        """See Stage."""
        self._steps = 0
        seeds: Any = np.array([seed], np.int64)  # the game takes one for each lane
        if self._screen is not None:
            self._picture = self._screen.reset(seed=seeds)[0][0, -1]
        return Moment(self._frame(self._eyes.reset(seed=seeds)[0]))

    def step(self, action: Any) -> Moment:
        """See Stage."""
        actions = np.array([action])
        observations, reward, terminated, truncated, _ = self._eyes.step(actions)
        ended = bool(terminated[0] or truncated[0])
        if self._screen is not None:
            pictures, screen_reward, screen_terminated, screen_truncated, _ = self._screen.step(actions)
            self._picture = pictures[0, -1]
            if (screen_reward[0], bool(screen_terminated[0] or screen_truncated[0])) != (reward[0], ended):
                raise RuntimeError("the picture's environment has left the one that the policy plays")
        self._steps += 1
        return Moment(self._frame(observations), float(reward[0]), ended or self._steps == self._max_steps)

    def picture(self) -> np.ndarray:
        """See Stage."""
        return np.asarray(self._picture)

    def close(self) -> None:
        """See Stage."""
        self._eyes.close()
        if self._screen is not None:
            self._screen.close()

    def _frame(self, observations: Any) -> np.ndarray:
        # Copied: the environment writes the next ones into the same memory.
        return np.array(observations[0, 0] if self._stacked else observations[0])


def play(stage: Stage, policy: Acts, seed: int, max_steps: int) -> Iterator[Moment]:
    """One episode: its first observation, then each step's, until it ends or max_steps are over."""
    policy.reset()
    moment = stage.reset(seed)
    yield moment
    for _ in range(max_steps):
        if moment.ended:
            return
        moment = stage.step(policy(moment.observation, moment.action_mask))
        yield moment
