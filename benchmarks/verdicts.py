"""Whether the verdict names the stage that limits a run: it is asked, then one side gets twice the work.

Run as `python -m benchmarks.verdicts [NAME …]`. Each configuration runs twice by the local runtime, for 40
seconds. The second run learns twice as much from each env step (pacing.samples_per_insert), all else
equal. If acting limits the first run, its env steps a second remain; if the learner or replay does, they are
halved. The middle, three quarters, decides what the verdict should have been.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from benchmarks.processor import processor
from benchmarks.quiet_run import quiet_run
from benchmarks.recorded_runs import json_lines
from cluster.settings.load_config import load_config

SECONDS = 40
COUNTED_SECONDS = 25
"""The end of a run, in which pacing is steady."""
MIDDLE = 0.75
_ENDLESS = (
    "run.runtime=local",
    "actors.num_actors=1",
    "learner.threads=1",
    "replay.persist=none",
    "pacing.learning_starts=2000",
    "metrics.every_seconds=1",
    "evaluation.every_updates=1000000000",
    "stop.target_return=1000000000",
    "stop.env_steps=1000000000",
    f"stop.seconds={SECONDS}",
)


class Pictures(gym.Env[np.ndarray, np.int64]):
    """Gray pictures of 240 x 320 that change with each step, two actions, episodes of 200 steps."""

    observation_space = spaces.Box(0, 255, (240, 320), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._picture(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._picture(), 1.0, False, self.steps == 200, {}

    def _picture(self) -> np.ndarray:
        return np.full((240, 320), self.steps, np.uint8)


CASES: Mapping[str, tuple[str, ...]] = {
    "CartPole, 64-64, 2 samples per insert": (
        *("env.id=CartPole-v1", "learner.hidden_sizes=[64, 64]", "learner.batch_size=64"),
        *("actors.envs_per_actor=4", "pacing.samples_per_insert=2"),
    ),
    "CartPole, 512-512, 32 samples per insert": (
        *("env.id=CartPole-v1", "learner.hidden_sizes=[512, 512]", "learner.batch_size=256"),
        *("actors.envs_per_actor=16", "pacing.samples_per_insert=32"),
    ),
    "CartPole of 2 ms a step, 8 samples per insert": (
        *("env.id=benchmarks.slow_steps:SlowCartPole", "learner.batch_size=64"),
        *("actors.envs_per_actor=8", "pacing.samples_per_insert=8", "pacing.learning_starts=500"),
    ),
    "MinAtar Breakout, its preset": ("env.id=MinAtar/Breakout-v1",),
    "Pong, its preset": ("env.id=ALE/Pong-v5",),
    "pictures of 240 x 320, Nature CNN, 1 sample per insert": (
        *("env.id=benchmarks.verdicts:Pictures", "learner.network=nature_cnn", "learner.batch_size=32"),
        *("actors.envs_per_actor=8", "replay.capacity=20000", "replay.sampling=uniform"),
        # Short chunks: with an update a second, pacing is steady after a few of them only.
        *("actors.steps_per_chunk=4", "learner.updates_per_chunk=1", "learner.image_hidden_size=64"),
        *("pacing.samples_per_insert=1", "pacing.learning_starts=200"),
    ),
}


@dataclass(frozen=True)
class Half:
    """The steady part of one run. verdict: its last one while the run went on."""

    env_steps_per_second: float
    samples_per_insert: float
    verdict: str


def run(settings: Sequence[str]) -> Half:
    """Runs a configuration for SECONDS."""
    config = load_config(None, [*_ENDLESS, *settings])
    with tempfile.TemporaryDirectory() as folder:
        quiet_run(config, Path(folder) / "run")
        lines = json_lines(Path(folder) / "run" / "metrics.jsonl")[:-1]
    last = lines[-1]
    first = next(line for line in lines if line["run_seconds"] >= last["run_seconds"] - COUNTED_SECONDS)
    if not first["updates_total"]:
        raise RuntimeError(f"no update within {first['run_seconds']:.0f} s: {settings}")
    steps = last["env_steps_total"] - first["env_steps_total"]
    seconds = last["run_seconds"] - first["run_seconds"]
    return Half(steps / seconds, config.pacing.samples_per_insert or 0.0, last["verdict"]["stage"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(CASES)}")
    names = parser.parse_args(arguments).names or list(CASES)
    print(processor(), flush=True)
    print(
        "| configuration | verdict | env steps/s | with twice the learning | of it | acting limits | agrees |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        before = run(CASES[name])
        after = run([*CASES[name], f"pacing.samples_per_insert={2 * before.samples_per_insert:g}"])
        share = after.env_steps_per_second / before.env_steps_per_second
        acting = share > MIDDLE
        cells = (
            name,
            before.verdict,
            f"{before.env_steps_per_second:,.0f}",
            f"{after.env_steps_per_second:,.0f}",
            f"{share:.2f}",
            "yes" if acting else "no",
            "yes" if acting == (before.verdict == "actor") else "no",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
