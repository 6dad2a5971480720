"""A serial run in this process, its metrics and events kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cluster.api import Result, train
from cluster.metrics.snapshot import Snapshot
from cluster.record.events import Event
from cluster.settings.load_config import load_config

SMALL = (
    "run.runtime=serial",
    "actors.envs_per_actor=4",
    "actors.steps_per_chunk=8",
    "learner.hidden_sizes=[16]",
    "learner.batch_size=16",
    "learner.updates_per_chunk=8",
    "pacing.learning_starts=64",
    "pacing.samples_per_insert=4",
    "evaluation.every_updates=80",
    "evaluation.episodes=3",
    "stop.updates=200",
)
"""A run of about a second."""

RECALL = (
    *SMALL,
    "env.id=qfleet_test_envs:Recall",
    "env.stack=3",
    "actors.epsilon_decay_env_steps=2000",
    "learner.learning_rate=5e-3",
    "learner.target_update_updates=20",
    "evaluation.episodes=40",
    "evaluation.every_updates=200",
    "stop.updates=1500",
    "stop.target_return=1.0",
)
"""A run that solves Recall, whose reward depends on a frame two steps ago, by a stack of three."""


@dataclass
class Recorder:
    """A view that only remembers."""

    snapshots: list[Snapshot] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def metrics(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def event(self, event: Event) -> None:
        self.events.append(event.line)


def train_serial(run_dir: Path, overrides: Sequence[str], recorder: Recorder | None = None) -> Result:
    """Trains with these overrides in this process."""
    view = recorder or Recorder()
    return train(load_config(None, overrides), run_dir, view=lambda *_: view)
