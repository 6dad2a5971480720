"""What is kept of a minibatch whose update was not applied.

Owns the figures that tell bad data from diverging values; must not import torch or the learning loop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from replay_service.messages import Minibatch


class Figures(NamedTuple):
    """An array at a glance: the range of its finite values (NaN if there are none), and how many are not."""

    smallest: float
    largest: float
    not_finite: int


class Outcome(Protocol):
    """learner.update.SkippedUpdate, by its shape alone."""

    @property
    def loss(self) -> float:
        """Mean over the batch."""

    @property
    def grad_norm(self) -> float:
        """Before clipping."""

    @property
    def td_errors(self) -> np.ndarray:
        """[B]."""


@dataclass(frozen=True)
class SkippedBatch:
    """A minibatch that met `version` and gave a loss or gradient that is not finite.

    keys are the transitions' item ids, shard after shard; transitions_per_shard says how many are of each.
    Both are empty where the source gives no keys. arrays: name -> its figures.
    """

    version: int
    loss: float
    grad_norm: float
    keys: tuple[int, ...]
    transitions_per_shard: tuple[int, ...]
    arrays: Mapping[str, Figures]


def skipped_batch(minibatch: Minibatch, version: int, outcome: Outcome) -> SkippedBatch:
    """Copies what is worth a look of a minibatch, whose arrays are reused soon."""
    arrays = {
        **minibatch.windows,
        "action": minibatch.action,
        "reward": minibatch.reward,
        "discount": minibatch.discount,
        "weight": minibatch.weight,
        "td_error": outcome.td_errors,
    }
    return SkippedBatch(
        version=version,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        keys=() if minibatch.keys is None else tuple(minibatch.keys.tolist()),
        transitions_per_shard=()
        if minibatch.transitions_per_shard is None
        else tuple(minibatch.transitions_per_shard.tolist()),
        arrays={name: summary(array) for name, array in arrays.items()},
    )


def summary(array: np.ndarray) -> Figures:
    """Range and faults of an array of any shape."""
    finite = array[np.isfinite(array)]
    if not finite.size:
        return Figures(math.nan, math.nan, array.size)
    return Figures(float(finite.min()), float(finite.max()), array.size - finite.size)


def append_skipped(path: Path, batch: SkippedBatch) -> None:
    """Adds one line of JSON; numbers that JSON has no word for are written as "nan", "inf" and "-inf"."""
    line = asdict(batch) | {"arrays": {name: figures._asdict() for name, figures in batch.arrays.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)  # this may be another machine than the run directory's
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(line)) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
