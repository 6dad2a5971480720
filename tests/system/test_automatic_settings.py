"""Runs with what the first steps of an environment decide: a step limit, bounds, and what a resume keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from qfleet_serial import SMALL, Recorder, train_serial

from cluster.api import train
from cluster.record.line_file import read_objects
from cluster.record.run_dir import EVALUATIONS, read_config
from cluster.settings.load_config import load_config

CLIFF = [*SMALL, "env.id=CliffWalking-v1", "run.preset=none"]


def test_an_endless_environment_gets_a_limit_that_is_announced_and_kept(tmp_path: Path) -> None:
    recorder, run_dir = Recorder(), tmp_path / "run"
    train_serial(run_dir, [*CLIFF, "stop.updates=160"], recorder)
    config = read_config(run_dir)
    assert config.env.max_episode_steps == 200
    limits = [line for line in recorder.events if "env.max_episode_steps=200 truncates them" in line]
    assert len(limits) == 1
    assert limits[0].startswith("warning: CliffWalking-v1 has no step limit")
    rates = "the network is a table: learner.learning_rate=0.02, falling to 0.0005 over 96 updates"
    assert recorder.events.count(rates) == 1
    # The same command goes on, with a longer run for which other numbers would be chosen.
    resumed = load_config(None, [*CLIFF, "stop.updates=200"])
    train(resumed, run_dir, resume="must", view=lambda *_: Recorder())
    assert read_config(run_dir).learner == config.learner
    assert read_config(run_dir).env == config.env
    lengths = [length for line in read_objects(run_dir / EVALUATIONS) for length in line["lengths"]]
    assert max(lengths) <= 200


class Overflowing(gym.Env[np.ndarray, int]):
    """Shows numbers that grow beyond their bounds, a little more in each episode, but not at its begin."""

    observation_space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (2,))})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = np.zeros(2, np.float32)
        return {"x": self.x}, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = self.x + np.float32(0.3)
        return {"x": self.x}, 0.0, False, bool(self.x[0] > 3.0), {}


def test_bounds_that_observations_leave_are_told_once_in_a_run(tmp_path: Path) -> None:
    recorder = Recorder()
    train_serial(tmp_path / "run", [*SMALL, f"env.id={__file__}:Overflowing"], recorder)
    (told,) = [line for line in recorder.events if "leave the bounds of their space" in line]
    assert told.startswith("warning: ")
    assert "an observation whose 'x' holds 1." in told
