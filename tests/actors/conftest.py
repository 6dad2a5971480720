"""A scripted environment: what it does is written down, so that transitions can be worked out by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from actors.core import EnvSpec
from actors.envs.guarded_vector import GuardedVector
from actors.envs.stepper import VectorStepper

sys.path.insert(0, str(Path(__file__).parent / "support"))

Script = list[list[tuple[Any, ...]]]
"""Episodes of one lane; each a list of (reward, terminated, truncated) or of those and "a life was lost"."""

LIVES = 9


class ScriptedEnv(gym.Env[np.ndarray, int]):
    """Plays its script, then one endless episode. An observation is (lane, episode, frame of the episode).

    The action is added to the reward, so that a wrong action in a transition also shows in its reward.
    """

    metadata: ClassVar[dict[str, Any]] = {}

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, lane: int, script: Script) -> None:
        self.lane, self.script = lane, script
        self.episode, self.frame = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.frame, self.lives = self.episode + 1, 0, LIVES
        return self.observation(), {"lives": self.lives}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, terminated, truncated = 0.0, False, False
        if self.episode < len(self.script):
            reward, terminated, truncated, *lost = self.script[self.episode][self.frame]
            self.lives -= sum(lost)
        self.frame += 1
        return self.observation(), reward + float(action), terminated, truncated, {"lives": self.lives}

    def observation(self) -> np.ndarray:
        return np.array([self.lane, self.episode, self.frame], np.float32)


class ScriptedVector(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The same games in the manner of native vector environments: one buffer for all observations, arrays
    without "_" flags in infos, rewards and end flags left over on autoreset steps.

    limited: never truncates by itself, as ALE never does here.
    """

    single_observation_space = ScriptedEnv.observation_space
    single_action_space = ScriptedEnv.action_space

    def __init__(self, scripts: list[Script], mode: AutoresetMode, limited: bool = False) -> None:
        self.num_envs = len(scripts)
        self.metadata = {"autoreset_mode": mode}
        self._mode, self._limited = mode, limited
        self._games = [ScriptedEnv(lane, script) for lane, script in enumerate(scripts)]
        self._seen = np.zeros((self.num_envs, 3), np.float32)
        self._over = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        which = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        for lane in which.nonzero()[0]:
            self._seen[lane], _ = self._games[lane].reset()
            self._over[lane] = False
        return self._seen, {"lives": self._lives()}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        assert self._mode is not AutoresetMode.DISABLED or not self._over.any()
        reward, terminated, truncated = np.ones(self.num_envs), self._over.copy(), self._over.copy()
        final, final_lives = self._seen.copy(), self._lives()
        for lane, game in enumerate(self._games):
            if self._over[lane] and self._mode is AutoresetMode.NEXT_STEP:
                self._seen[lane], _ = game.reset()
                self._over[lane] = False
                continue
            self._seen[lane], reward[lane], terminated[lane], truncated[lane], _ = game.step(actions[lane])
            if self._limited:
                truncated[lane] = False
            self._over[lane] = terminated[lane] or truncated[lane]
            final[lane], final_lives[lane] = self._seen[lane], game.lives
            if self._over[lane] and self._mode is AutoresetMode.SAME_STEP:
                self._seen[lane], _ = game.reset()
                self._over[lane] = False
        info: dict[str, Any] = {"lives": self._lives()}
        if self._mode is AutoresetMode.SAME_STEP:
            info |= {"final_obs": final, "final_info": {"lives": final_lives}}
        return self._seen, reward, terminated, truncated, info

    def _lives(self) -> np.ndarray:
        return np.array([getattr(game, "lives", 0) for game in self._games])


def make_scripted(
    scripts: list[Script],
    mode: AutoresetMode,
    stack: int = 1,
    backend: str = "sync",
    step_limit: int | None = None,
) -> VectorStepper:
    """backend: sync, async or native; with a step_limit, a native one never truncates by itself."""

    def lane(index: int) -> Callable[[], ScriptedEnv]:
        return lambda: ScriptedEnv(index, scripts[index])

    def make() -> VectorEnv[Any, Any, Any]:
        if backend == "native":
            return ScriptedVector(scripts, mode, limited=step_limit is not None)
        form = AsyncVectorEnv if backend == "async" else SyncVectorEnv
        return form([lane(i) for i in range(len(scripts))], copy=False, autoreset_mode=mode)

    spec = EnvSpec((3,), "<f4", None, 3, stack, backend, mode.value, None, None)
    return VectorStepper(GuardedVector(make, "list", name="scripted"), spec, step_limit=step_limit)


@pytest.fixture(scope="session")
def scripted() -> Callable[..., VectorStepper]:
    """See make_scripted."""
    return make_scripted


@pytest.fixture
def registered() -> Iterator[dict[str, Registration]]:
    """Gymnasium's registry; what a test adds is taken out again."""
    before = set(gym.registry)
    yield gym.registry
    for added in set(gym.registry) - before:
        del gym.registry[added]
