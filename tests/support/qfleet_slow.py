"""An environment and a network that are slow, or hang once, in the role that a folder says."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from qfleet_test_envs import Corridor, wait_for_ever
from torch import nn

from learner.config import LearnerConfig, NetworkSpec

FOLDER = "QFLEET_TEST_SLOW"
"""Variable: a folder with `ROLE-seconds`, the time of a step or update, and `ROLE-hang`, which one takes."""
EPISODE_STEPS = 2_500
_MODULES = {"rollout.py": "actor", "evaluation.py": "evaluator"}


def work(role: str) -> None:
    """Takes the time that a step or update of this role takes, or hangs for ever."""
    folder = Path(os.environ[FOLDER])
    seconds = folder / f"{role}-seconds"
    if seconds.exists():
        time.sleep(float(seconds.read_text()))
    try:
        (folder / f"{role}-hang").unlink()
    except FileNotFoundError:
        return
    wait_for_ever()


class Endless(Corridor):
    """A corridor whose far end ends nothing; an episode has 2,500 steps, of which nobody is told."""

    def __init__(self) -> None:
        makers = (_MODULES.get(Path(each.filename).name) for each in traceback.extract_stack())
        self.role = next(filter(None, makers), "nobody")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.left = EPISODE_STEPS
        return super().reset(seed=seed, options=options)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        work(self.role)
        self.left -= 1
        self.position = min(self.position, 2)
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.left == 0, False, info


class Slow(nn.Module):
    """A small network that takes its time where gradients are wanted: in the learner."""

    def __init__(self, spec: NetworkSpec, config: LearnerConfig) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.observation_shape[-1], spec.num_actions)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(observations) > 1:
            work("learner")
        values: torch.Tensor = self.layer(observations.flatten(1))
        return values
