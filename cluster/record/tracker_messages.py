"""What a run tells its trackers, as lines of JSON between their processes.

Owns the messages alone, so that a tracker's process imports little: nothing else of the project.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

HEADLINES = ("eval/best_return_mean", "rollout/train_return_mean", "train/updates_total")
"""Tags of the metrics that stand for the result of a run."""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The run begins or goes on. settings: full name -> value. text: all of them as YAML."""

    run_dir: str
    settings: Mapping[str, str | float | bool | None]
    text: str


class Scalars(msgspec.Struct, frozen=True, tag=True):
    """Numbers at a moment. values: "group/name" -> number. seconds: unix time."""

    env_steps: int
    seconds: float
    values: Mapping[str, float]


class File(msgspec.Struct, frozen=True, tag=True):
    """A file to keep with the run, whose content is new. kind: "config", "metrics", "best" or "report"."""

    kind: Literal["config", "metrics", "best", "report"]
    path: str


class Finish(msgspec.Struct, frozen=True, tag=True):
    """The run has ended. values: its results, by their names as metrics."""

    reason: str
    failed: bool
    values: Mapping[str, float]


TrackerMessage = Begin | Scalars | File | Finish
