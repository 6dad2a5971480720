"""The record of a minibatch whose update was skipped, because its loss or gradient was not finite.

Owns this record, which tells bad data from diverged values; must not import torch or the learning loop.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from learner.core import minibatch_arrays
from replay_service.messages import Minibatch


@dataclass(frozen=True, eq=False)
class SkippedUpdate:
    """An update that was not applied. The loss is a mean over the batch, grad_norm is before clipping.

    At least one of them is NaN or infinite. td_errors: [B] float32, absolute.
    """

    loss: float
    grad_norm: float
    td_errors: np.ndarray


class ArraySummary(NamedTuple):
    """The range of an array's finite values (NaN if there are none), and how many values are not finite."""

    smallest: float
    largest: float
    not_finite: int


@dataclass(frozen=True)
class SkippedBatch:
    """A minibatch whose update was skipped when the weights had this version.

    keys are the transitions' item ids, shard after shard; transitions_per_shard counts those of each shard.
    Both are empty where the source gives no keys. arrays: name -> summary.
    """

    version: int
    loss: float
    grad_norm: float
    keys: tuple[int, ...]
    transitions_per_shard: tuple[int, ...]
    arrays: Mapping[str, ArraySummary]


def skipped_batch(minibatch: Minibatch, version: int, update: SkippedUpdate) -> SkippedBatch:
    """The record of a minibatch; holds none of its arrays, which are reused soon."""
    arrays = minibatch_arrays(minibatch) | {"td_error": update.td_errors}
    return SkippedBatch(
        version=version,
        loss=update.loss,
        grad_norm=update.grad_norm,
        keys=_integers(minibatch.keys),
        transitions_per_shard=_integers(minibatch.transitions_per_shard),
        arrays={name: summary(array) for name, array in arrays.items()},
    )


def summary(array: np.ndarray) -> ArraySummary:
    """The summary of an array of any shape."""
    finite = array[np.isfinite(array)]
    if not finite.size:
        return ArraySummary(math.nan, math.nan, array.size)
    return ArraySummary(float(finite.min()), float(finite.max()), array.size - finite.size)


def append_skipped(path: Path, batch: SkippedBatch) -> None:
    """Appends the record as one line of JSON; NaN and infinity are written as "nan", "inf" and "-inf"."""
    line = asdict(batch) | {"arrays": {name: array._asdict() for name, array in batch.arrays.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)  # the learner's machine may lack the run directory
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_strict_json(line)) + "\n")


def _integers(array: np.ndarray | None) -> tuple[int, ...]:
    return () if array is None else tuple(array.tolist())


def _strict_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict_json(part) for name, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
