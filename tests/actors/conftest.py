"""A scripted environment: what it does is written down, so that rows can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.core import EnvSpec
from actors.stepper import VectorStepper

Script = list[list[tuple[float, bool, bool]]]
"""Episodes of one lane; each a list of (reward, terminated, truncated)."""


class ScriptedEnv(gym.Env[np.ndarray, int]):
    """Plays its script, then one endless episode. An observation is (lane, episode, frame of the episode).

    The action is added to the reward, so that a row with another row's action is found out.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, lane: int, script: Script) -> None:
        self.lane, self.script = lane, script
        self.episode, self.frame = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.frame = self.episode + 1, 0
        return self.observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, terminated, truncated = 0.0, False, False
        if self.episode < len(self.script):
            reward, terminated, truncated = self.script[self.episode][self.frame]
        self.frame += 1
        return self.observation(), reward + float(action), terminated, truncated, {}

    def observation(self) -> np.ndarray:
        return np.array([self.lane, self.episode, self.frame], np.float32)


def make_scripted(scripts: list[Script], mode: AutoresetMode, stack: int = 1) -> VectorStepper:
    def lane(index: int) -> Callable[[], ScriptedEnv]:
        return lambda: ScriptedEnv(index, scripts[index])

    env = SyncVectorEnv([lane(i) for i in range(len(scripts))], copy=False, autoreset_mode=mode)
    spec = EnvSpec((3,), "<f4", None, 3, stack, "sync", mode.value, None, None)
    return VectorStepper(env, spec, "list")


@pytest.fixture(scope="session")
def scripted() -> Callable[..., VectorStepper]:
    """make_scripted(scripts, mode, stack=1)."""
    return make_scripted
