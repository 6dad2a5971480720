"""Environments that tests name by import path: small, known, or broken on purpose."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any
from uuid import uuid4

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


class Counted(BrokenAfter):
    """A corridor that notes in `folder` that it was opened, played and closed, in whichever process."""

    def __init__(self, folder: str, steps: int = 1_000_000, how: str = "raise") -> None:
        super().__init__(steps, how)
        self.note = Path(folder) / f"{uuid4()}.open"
        self.note.touch()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.note.with_suffix(".played").touch()
        return super().reset(seed=seed, options=options)

    def close(self) -> None:
        self.note.rename(self.note.with_suffix(".closed"))


def opened_and_left(folder: Path) -> tuple[int, int]:
    """How many environments were opened, and how many of them were not closed."""
    left = list(folder.glob("*.open"))
    return len(left) + len(list(folder.glob("*.closed"))), len(left)


class Talkative(Corridor):
    """A corridor that prints each step, warns at its beginning, and breaks after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        warnings.warn("careful now", stacklevel=1)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        print("step", self.left)
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("said enough")
        return super().step(action)


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


class MaskedChain(Chain):
    """A chain in which `allowed` [S, A] says what may be done; the end allows nothing. Every reward costs.

    A target that took what is not allowed, which nobody ever tries and is never learned, would take it for
    free: its values are 0, all others below.
    """

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.reward = rng.uniform(-1.0, 0.0, size=self.reward.shape)
        self.allowed = rng.random(self.chance.shape[:2]) < 0.6
        self.allowed[:, 0] |= ~self.allowed.any(axis=1)
        self.allowed[-1] = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        state, _ = super().reset(seed=seed)
        return state, {"action_mask": self.allowed[state].astype(np.int8)}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert self.allowed[self.state, action], f"action {action} is not allowed in state {self.state}"
        state, reward, terminated, truncated, _ = super().step(action)
        return state, reward, terminated, truncated, {"action_mask": self.allowed[state].astype(np.int8)}


class Signals(gym.Env[dict[str, Any], int]):
    """Shows a lamp, then a sign, then asks: action 1 if exactly one of them was on, else action 0, earns 1.

    What was shown is gone a step later, and the sign is told on an awkward scale. Until asked one can only
    wait (action 2), and then not any more.
    """

    observation_space = spaces.Dict(
        {
            "lamp": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "panel": spaces.Tuple([spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Discrete(3)]),
        }
    )
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.lamp, self.sign = (bool(on) for on in self.np_random.integers(2, size=2))
        self.steps = 0
        return self.observation(), self.info()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.info()["action_mask"][action], f"action {action} is not allowed in step {self.steps}"
        reward = float(self.steps == 2 and action == (self.lamp != self.sign))
        self.steps += 1
        return self.observation(), reward, self.steps == 3, False, self.info()

    def observation(self) -> dict[str, Any]:
        lamp = np.full((36, 36, 1), 255 if self.lamp and self.steps == 0 else 0, np.uint8)
        sign = (1.0 if self.sign else -1.0) if self.steps == 1 else 0.0
        return {"lamp": lamp, "panel": (np.array([4_000.0 + 2_000.0 * sign, 0.25]), min(self.steps, 2))}

    def info(self) -> dict[str, Any]:
        if self.steps == 3:
            return {"action_mask": np.zeros(3, np.int8)}
        return {"action_mask": np.array([1, 1, 0] if self.steps == 2 else [0, 0, 1], np.int8)}


class ByteCodes(gym.Env[np.ndarray, int]):
    """Three codes from 0 to 3 of any dtype; the action equal to the first earns 1."""

    action_space = spaces.Discrete(4)

    def __init__(self, dtype: str = "uint8") -> None:
        self.observation_space = spaces.Box(0, 3, (3,), np.dtype(dtype).type)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.codes[0])
        self.steps += 1
        return self.observation(), reward, False, self.steps == 8, {}

    def observation(self) -> np.ndarray:
        self.codes = self.np_random.integers(4, size=3)
        return self.codes.astype(self.observation_space.dtype)
