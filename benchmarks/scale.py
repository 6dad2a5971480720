"""The load of further actors: env steps per second, CPU time of coordinator, shard and learner.

Run as `python -m benchmarks.scale [ACTORS …]`. The environment is a stub that sleeps, like one that waits for
a simulator elsewhere, so a few cores carry many actors. In the printed table, the first row whose steps per
second fall below those of one actor times their number shows the limit, and its fullest column shows the
cause.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
from gymnasium import spaces

from benchmarks.processor import processor
from cluster.api import train
from cluster.metrics.snapshot import Snapshot
from cluster.record.events import Event
from cluster.settings.load_config import load_config

ACTORS = (1, 2, 4, 8, 16)
SECONDS = 12.0
STEP_SECONDS = 0.001
LANES = 8
_ROLES = {"qf shard": "shard", "qf learner": "learner", "qf actor": "actors"}


class Sleeper(gym.Env[np.ndarray, int]):
    """Four numbers, two actions, episodes of 200 steps; each step takes STEP_SECONDS and no processor."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(STEP_SECONDS)
        self.steps += 1
        return np.zeros(4, np.float32), 1.0, False, self.steps == 200, {}


@dataclass(frozen=True)
class Moment:
    """Totals of a run at a time; busy: seconds of processor by role so far."""

    at: float
    env_steps: int
    updates: int
    busy: dict[str, float]


class Watch:
    """A view that keeps totals and CPU time; it ends the run SECONDS after its first steps."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.ended = False

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        pass

    def metrics(self, snapshot: Snapshot) -> None:
        if snapshot.env_steps_total > 0:
            totals = snapshot.env_steps_total, snapshot.updates_total
            self.moments.append(Moment(time.monotonic(), *totals, _busy()))
            if not self.ended and self.moments[-1].at - self.moments[0].at >= SECONDS:
                self.ended = True
                signal.raise_signal(signal.SIGINT)


def _busy() -> dict[str, float]:
    me = psutil.Process()
    seconds = {"coordinator": sum(me.cpu_times()[:2])}
    for process in me.children(recursive=True):
        try:
            name, times = process.name(), process.cpu_times()
        except psutil.Error:
            continue
        for start, role in _ROLES.items():
            if name.startswith(start):
                seconds[role] = seconds.get(role, 0.0) + times.user + times.system
    return seconds


def measure(num_actors: int) -> dict[str, float]:
    """Rates and busy cores by role over the second half of SECONDS; roles come up in the first half."""
    overrides = [
        "env.id=benchmarks.scale:Sleeper",
        "env.backend=sync",
        "run.runtime=local",
        f"actors.num_actors={num_actors}",
        f"actors.envs_per_actor={LANES}",
        "learner.hidden_sizes=[64]",
        "learner.batch_size=64",
        "pacing.samples_per_insert=1",
        "evaluation.every_updates=1000000000",
        "replay.persist=none",
        "stop.env_steps=1000000000",
        "stop.target_return=1000000",
    ]
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        train(load_config(None, overrides), Path(folder) / "run", view=lambda *_: watch)
    # The last snapshot is from the end, when roles are idle.
    moments = [moment for moment in watch.moments[:-1] if moment.at > watch.moments[-2].at - SECONDS / 2]
    first, last = moments[0], moments[-1]
    seconds = last.at - first.at
    rates = {
        "env steps/s": (last.env_steps - first.env_steps) / seconds,
        "updates/s": (last.updates - first.updates) / seconds,
    }
    roles = ("coordinator", "shard", "learner", "actors")
    return rates | {role: (last.busy.get(role, 0.0) - first.busy.get(role, 0.0)) / seconds for role in roles}


def main() -> None:
    print(processor(), flush=True)
    print(
        f"{LANES} environments an actor, {STEP_SECONDS * 1000:g} ms a step each; processors kept busy by role"
    )
    print(f"{'actors':>6} {'env steps/s':>12} {'of ideal':>9} {'updates/s':>10}", end="")
    print("".join(f" {role:>12}" for role in ("coordinator", "shard", "learner", "actors")))
    one = None
    for num_actors in [int(text) for text in sys.argv[1:] if text.isdigit()] or ACTORS:
        found = measure(num_actors)
        one = one or found["env steps/s"] / num_actors
        line = (
            f"{num_actors:6} {found['env steps/s']:12,.0f} {found['env steps/s'] / (one * num_actors):9.2f}"
        )
        line += f" {found['updates/s']:10,.0f}"
        line += "".join(f" {found[role]:12.2f}" for role in ("coordinator", "shard", "learner", "actors"))
        print(line, flush=True)


if __name__ == "__main__":
    main()
