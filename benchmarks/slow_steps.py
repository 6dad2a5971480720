"""Environments that wait, and a role that loads weights.

In a module of its own, which imports little: every process of an actor loads it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from actors.policy import MlpPolicy

STEP_SECONDS = 0.005
TASK_STEP_SECONDS = 0.002
WEIGHTS_SIZES = (4, 1_320, 1_320, 2)
"""Layers of a network whose weights have 7 MB."""


class Sleeper(gym.Env[np.ndarray, np.int64]):
    """Four numbers, two actions, episodes of 200 steps; each step takes STEP_SECONDS and no processor."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(STEP_SECONDS)
        self.steps += 1
        return np.zeros(4, np.float32), 1.0, False, self.steps == 200, {}


class SlowCartPole(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole whose step takes TASK_STEP_SECONDS, except in the process of the evaluator."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        name = Path("/proc/self/comm").read_text(encoding="ascii")
        self._seconds = 0.0 if name.startswith("qf evaluator") else TASK_STEP_SECONDS

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        time.sleep(self._seconds)
        return super().step(action)


class Loader:
    """A process that takes weights as an actor does."""

    def __init__(self) -> None:
        self._policy = MlpPolicy(WEIGHTS_SIZES)

    def load(self, weights: np.ndarray) -> int:
        """Loads them; returns their number."""
        self._policy.load(weights)
        return weights.size
