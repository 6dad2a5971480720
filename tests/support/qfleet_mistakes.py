"""Environments and networks as somebody writes them who has misread the documentation, by import path."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces


class Right(gym.Env[Any, Any]):
    """Two numbers, two actions; each mistake below changes one thing."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


class WrongShape(Right):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(3, np.float32), {}


class WrongShapeInStep(Right):
    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), 0.0, False, False, {}


class OldReset(Right):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32)


class OldStep(Right):
    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, {}


class NoSeed(Right):
    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(2, np.float32), {}


class RaisingReset(Right):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        raise RuntimeError("the board is not set up")


class RaisingStep(Right):
    def step(self, action: Any) -> Any:
        raise KeyError("left")


class RaisingInit(Right):
    def __init__(self) -> None:
        raise OSError("no such level")


class NoReward(Right):
    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), None, False, False, {}


class TextReward(Right):
    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), "ten", False, False, {}


class NoObservationSpace(Right):
    observation_space = None  # type: ignore[assignment]


class TextActions(Right):
    action_space = spaces.Text(3)


class ContinuousActions(Right):
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Endless(Right):
    """Never ends, and draws what its `how` says."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, how: str = "picture", render_mode: str | None = None) -> None:
        self.how, self.render_mode = how, render_mode

    def render(self) -> Any:
        if self.how == "none":
            return None
        kind = np.float32 if self.how == "floats" else np.uint8
        return np.zeros((8, 8, 3) if self.how != "flat" else (64,), kind)


def not_an_environment() -> object:
    return object()


def too_small(spec: Any, config: Any) -> torch.nn.Module:
    return torch.nn.Linear(2, 7)


def misfit(spec: Any, config: Any) -> torch.nn.Module:
    return torch.nn.Linear(99, 2)


def no_module(spec: Any, config: Any) -> Any:
    return 3


def raising(spec: Any, config: Any) -> torch.nn.Module:
    raise AttributeError("no hidden sizes")


def with_buffers(spec: Any, config: Any) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))


not_callable = 3
