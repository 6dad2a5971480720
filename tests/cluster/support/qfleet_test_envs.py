"""Environments that tests name by import path: small, known, or broken on purpose."""

from __future__ import annotations

import threading
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Corridor(gym.Env[np.ndarray, int]):
    """Five positions as one-hot floats; action 1 moves right, and the last position ends with reward 1."""

    observation_space = spaces.Box(0.0, 1.0, (5,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = 0
        return self.observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = max(0, self.position + (1 if action == 1 else -1))
        ended = self.position == 4
        return self.observation(), float(ended), ended, False, {}

    def observation(self) -> np.ndarray:
        return np.eye(5, dtype=np.float32)[self.position]


class BrokenAfter(Corridor):
    """A corridor that does something bad in the given step of its life."""

    def __init__(self, steps: int, how: str) -> None:
        self.left = steps
        self.how = how

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self.left < 0:
            if self.how == "raise":
                raise RuntimeError("the corridor has collapsed")
            if self.how == "hang":
                wait_for_ever()
            if self.how == "nan":
                observation = np.full_like(observation, np.nan)
        return observation, reward, terminated, truncated, info


def wait_for_ever() -> None:
    """The frame that a stack dump must show."""
    threading.Event().wait()


class Chain(gym.Env[int, int]):
    """A stochastic Markov decision process given by tables chance[s, a, s'] and reward[s, a, s'].

    The last state ends an episode. Episodes begin anywhere else, so that every pair is tried often.
    """

    def __init__(self, states: int = 6, actions: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.chance = rng.dirichlet(np.full(states, 0.5), size=(states, actions))
        self.reward = rng.uniform(-1.0, 1.0, size=(states, actions, states))
        self.observation_space = spaces.Discrete(states)
        self.action_space = spaces.Discrete(actions)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(len(self.chance) - 1))
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        before = self.state
        self.state = int(self.np_random.choice(len(self.chance), p=self.chance[before, action]))
        ended = self.state == len(self.chance) - 1
        return self.state, float(self.reward[before, action, self.state]), ended, False, {}


class Recall(gym.Env[np.ndarray, int]):
    """Shows a number at first and zeros later: only a stack of frames still knows it two steps on."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.sign = float(self.np_random.choice((-1.0, 1.0)))
        self.steps = 0
        return np.array([self.sign], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(self.steps == 3 and (action == 1) == (self.sign > 0))
        return np.zeros(1, np.float32), reward, self.steps == 3, False, {}
