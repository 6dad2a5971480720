"""Environments with a fault of their own, for diagnosis and verdict."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from learner.config import LearnerConfig, NetworkSpec


def scaled_cartpole(scale: float) -> gym.Env[Any, Any]:
    """CartPole whose rewards are `scale` instead of 1."""
    return gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: scale * float(reward))


class Busy(gym.Wrapper[Any, Any, Any, Any]):
    """An environment each step of which computes for so many seconds of this process's CPU time."""

    def __init__(self, env: gym.Env[Any, Any], seconds: float) -> None:
        super().__init__(env)
        self._seconds = seconds

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        until = time.thread_time() + self._seconds
        while time.thread_time() < until:
            pass
        return self.env.step(action)


def busy_cartpole(seconds: float) -> gym.Env[Any, Any]:
    """CartPole that takes so long for a step."""
    return Busy(gym.make("CartPole-v1"), seconds)


class Jackpot(gym.Env[np.ndarray, int]):
    """Rewards of 0, but for one step in `rarity` that pays 1,000; nothing foretells it."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, rarity: int = 2_000) -> None:
        self._rarity = rarity

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        reward = 1_000.0 * (self.np_random.integers(self._rarity) == 0)
        return self._observation(), float(reward), self._steps == 20, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 4).astype(np.float32)


class Wide(gym.Env[np.ndarray, int]):
    """Observations of 112 kB, of which four numbers matter: transitions are expensive, all else is cheap."""

    observation_space = spaces.Box(0, 255, (168, 168, 4), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros((168, 168, 4), np.uint8), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        # Noise of two values: it shrinks, but slowly.
        noise = self.np_random.integers(0, 2, (168, 168, 4), np.uint8)
        return noise, float(action), self._steps == 50, False, {}


def narrow_network(spec: NetworkSpec, config: LearnerConfig) -> torch.nn.Module:
    """Looks at one pixel."""
    return OnePixel()


class OnePixel(torch.nn.Module):
    """Q-values [B, 2] of the first pixel of [B, 168, 168, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.layer(observations[:, 0, 0].float() / 255.0)
        return values


class OneWay(gym.Env[np.ndarray, int]):
    """Ten steps, each of which pays 1 for action 1 and nothing for action 0."""

    observation_space = spaces.Box(0.0, 1.0, (10,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return np.eye(10, dtype=np.float32)[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        ended = self._steps == 10
        return np.eye(10, dtype=np.float32)[self._steps % 10], float(action == 1), ended, False, {}
