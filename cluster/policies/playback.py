"""Plays one environment episode by episode with a greedy policy, and draws pictures on request.

Owns opening the environment, the policy that users call, and the loop; must not import torch or ray.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs.adapter import Adapter
from actors.envs.errors import EnvError
from actors.envs.frame_stack import FrameStack
from actors.envs.make import make_atari, make_user_env
from actors.envs.observations import masked, split
from cluster.settings.config import ConfigError
from replay_service.block import ACTION_MASK

_ATARI_SCREEN = {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}
_ATARI_FRAMES_PER_SECOND = 60


class GreedyPolicy:
    """A callable that maps an environment's observation to its action, both in the environment's own form.

    Call reset() when an episode begins: it empties the stack of frames. Where the environment gives
    info["action_mask"], pass it beside each observation.
    """

    def __init__(self, q_values: Callable[[np.ndarray], np.ndarray], adapter: Adapter) -> None:
        """q_values: [1, *obs] -> [1, A]; see actors.core.Policy."""
        self._q_values = q_values
        self._adapter = adapter
        self._stack: FrameStack | None = None

    def __call__(self, observation: Any, action_mask: Any = None) -> Any:
        """The greedy action among those that action_mask [A] allows.

        Raises ValueError if the observation has a wrong shape, or a mask is missing or not expected.
        """
        frame = self._adapter.frame(observation, action_mask)
        if self._stack is None:
            self._stack = FrameStack(self._adapter.maker.spec.stack, frame)
        else:
            self._stack.push(frame, np.zeros(1, np.bool_))
        observations, allowed = split(self._stack.observations)
        return self._adapter.action(int(masked(self._q_values(observations), allowed).argmax()))

    def reset(self) -> None:
        """Begins an episode."""
        self._stack = None


@dataclass(frozen=True, eq=False)
class TimeStep:
    """The outcome of one step: the observation to act on next, and whether the episode is over.

    action_mask: info["action_mask"], if the policy wants one.
    """

    observation: Any
    reward: float = 0.0
    ended: bool = False
    action_mask: Any = None


class UserEnv:
    """A gymnasium.Env with its own observations and actions."""

    def __init__(self, env: gym.Env[Any, Any], *, masked: bool) -> None:
        """masked: whether the policy wants the action masks of env."""
        self._env = env
        self._masked = masked
        self.observation_space = env.observation_space
        self.frames_per_second = float(env.metadata.get("render_fps") or 30.0)

    def reset(self, seed: int) -> TimeStep:
        """Begins an episode."""
        observation, info = self._env.reset(seed=seed)
        return TimeStep(observation, action_mask=self._mask(info))

    def step(self, action: Any) -> TimeStep:
        """Takes one step."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        return TimeStep(observation, float(reward), bool(terminated or truncated), self._mask(info))

    def picture(self) -> np.ndarray:
        """The newest observation as a picture [H, W, 3] uint8. Works only if opened with pictures.

        Raises ConfigError if render() returns something else.
        """
        drawn = self._env.render()
        if not isinstance(drawn, np.ndarray) or drawn.dtype != np.uint8 or drawn.shape[2:] != (3,):
            form = f"{drawn.dtype} {list(drawn.shape)}" if isinstance(drawn, np.ndarray) else repr(drawn)
            raise ConfigError(
                f"{type(self._env.unwrapped).__name__}: render() returned {form}; with "
                "render_mode='rgb_array' it must return a picture [height, width, 3] of uint8"
            )
        return drawn

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def _mask(self, info: dict[str, Any]) -> Any:
        return info.get(ACTION_MASK) if self._masked else None


class AtariEnv:
    """An Atari game with the policy's frames and, for pictures, a twin in color and full size.

    Both get the same seed and actions, so they play the same episode; step raises if they differ.
    """

    observation_space: spaces.Space[Any]

    def __init__(
        self,
        game: VectorEnv[Any, Any, Any],
        twin: VectorEnv[Any, Any, Any] | None,
        max_steps: int | None,
        *,
        stacked: bool,
    ) -> None:
        """max_steps: limit of an episode, because ALE itself has none here. stacked: whether observations of
        `game` have a stack axis of 1, which the policy's frames do not have.
        """
        self._game, self._twin, self._stacked = game, twin, stacked
        self._max_steps = max_steps
        self._steps = 0
        space = game.single_observation_space
        assert isinstance(space, spaces.Box)
        self.observation_space = spaces.Box(space.low[0], space.high[0], dtype=np.uint8) if stacked else space
        skip = game.spec.kwargs.get("frameskip", 4) if game.spec else 4
        self.frames_per_second = _ATARI_FRAMES_PER_SECOND / skip

    def reset(self, seed: int) -> TimeStep:
        """See UserEnv."""
        self._steps = 0
        seeds: Any = np.array([seed], np.int64)  # ALE takes one for each lane
        if self._twin is not None:
            self._picture = self._twin.reset(seed=seeds)[0][0, -1]
        return TimeStep(self._frame(self._game.reset(seed=seeds)[0]))

    def step(self, action: Any) -> TimeStep:
        """See UserEnv. Raises RuntimeError if the twin plays another episode."""
        actions = np.array([action])
        observations, reward, terminated, truncated, _ = self._game.step(actions)
        ended = bool(terminated[0] or truncated[0])
        if self._twin is not None:
            pictures, twin_reward, twin_terminated, twin_truncated, _ = self._twin.step(actions)
            self._picture = pictures[0, -1]
            if (twin_reward[0], bool(twin_terminated[0] or twin_truncated[0])) != (reward[0], ended):
                raise RuntimeError("the environment that draws has left the episode that the policy plays")
        self._steps += 1
        return TimeStep(self._frame(observations), float(reward[0]), ended or self._steps == self._max_steps)

    def picture(self) -> np.ndarray:
        """See UserEnv."""
        return np.asarray(self._picture)

    def close(self) -> None:
        """See UserEnv."""
        self._game.close()
        if self._twin is not None:
            self._twin.close()

    def _frame(self, observations: Any) -> np.ndarray:
        # Copied: the environment writes the next observations into the same memory.
        return np.array(observations[0, 0] if self._stacked else observations[0])


PlayedEnv = UserEnv | AtariEnv
"""An environment that is played episode by episode."""


def open_env(config: EnvConfig, spec: EnvSpec, *, pictures: bool) -> PlayedEnv:
    """Opens the environment that a policy trained on `config` plays.

    Raises:
        ConfigError: pictures are wanted, but the environment draws none.
        EnvError: the environment cannot be made; the message names the cure.
    """
    if spec.backend == "native" and (game := make_atari(config)) is not None:
        with ExitStack() as unless_opened:
            unless_opened.callback(game.close)
            twin = make_atari(config, **_ATARI_SCREEN) if pictures else None
            unless_opened.pop_all()
        return AtariEnv(game, twin, spec.max_episode_steps, stacked="stack_num" not in config.kwargs)
    env = make_user_env(config)
    if not pictures:
        return UserEnv(env, masked=spec.action_mask)
    modes = env.metadata.get("render_modes", [])
    env.close()
    if "rgb_array" not in modes:
        raise ConfigError(
            f"{config.id} draws no pictures: its metadata names the render modes {list(modes)}, and a video "
            "needs rgb_array"
        )
    try:
        return UserEnv(make_user_env(config, render_mode="rgb_array"), masked=spec.action_mask)
    except EnvError as error:
        raise ConfigError(
            f"{error}. A video needs an environment that takes render_mode='rgb_array'"
        ) from error


def check_episodes(episodes: int, seed: int) -> None:
    """Raises ConfigError if the numbers given as --episodes and --seed make no sense."""
    if episodes < 1:
        raise ConfigError(f"--episodes is {episodes}; give 1 or more")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; give 0 or more")


def play(env: PlayedEnv, policy: GreedyPolicy, seed: int, max_steps: int) -> Iterator[TimeStep]:
    """Plays one episode of at most max_steps: yields its first observation, then the outcome of each step."""
    policy.reset()
    time_step = env.reset(seed)
    yield time_step
    for _ in range(max_steps):
        if time_step.ended:
            return
        time_step = env.step(policy(time_step.observation, time_step.action_mask))
        yield time_step
