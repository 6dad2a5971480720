"""Checkpoints put together by hand, with small files in place of the shards' segments."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from cluster.checkpoints.checkpoint import CheckpointStore, RunState, SavedCheckpoint, shard_folder
from cluster.control.evaluation import ModelSelectionState
from cluster.metrics.counters import CountersState
from learner.core import LearnerState
from replay_service.journal.writer import SegmentFact


def learner_state(version: int) -> LearnerState:
    """The state of a learner of three weights."""
    return LearnerState(version, {"online": np.full(3, version, np.float32)})


def run_state(*, evaluation: float | None = None) -> RunState:
    """A run of a minute. evaluation: the mean return of its newest evaluation."""
    counters = CountersState(evaluation_return_mean=evaluation)
    return RunState(60.0, {"learner": 0}, counters, ModelSelectionState(), "run: {}\n")


def write_segment(folder: Path, content: bytes, *, name: str = "00000000-0.qfj") -> SegmentFact:
    """What a shard does when it seals: a file, and the facts of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return SegmentFact(name, len(content), zlib.crc32(content), 0, 1)


def commit(
    store: CheckpointStore, version: int, *, evaluation: float | None = None, shards: int = 2
) -> SavedCheckpoint:
    """Writes the next checkpoint, with one segment per shard, whose content tells version and shard."""
    partial = store.begin()
    segments = {
        shard: (write_segment(shard_folder(partial, shard), b"version %d shard %d" % (version, shard)),)
        for shard in range(shards)
    }
    return store.commit(partial, run_state(evaluation=evaluation), learner_state(version), segments)


def flip_a_bit(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
