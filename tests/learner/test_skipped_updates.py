from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from learner.config import NetworkSpec
from learner.skipped_updates import ArraySummary, SkippedUpdate, append_skipped, skipped_batch, summary
from replay_service.messages import Minibatch

SPEC = NetworkSpec((4,), "float32", None, 3, stack=1)


def test_summary_leaves_out_and_counts_what_is_not_finite() -> None:
    assert summary(np.array([[3.0, np.nan], [-np.inf, -2.0]])) == ArraySummary(-2.0, 3.0, 2)
    assert summary(np.array([7, 250], np.uint8)) == ArraySummary(7.0, 250.0, 0)
    nothing = summary(np.array([np.nan, np.inf]))
    assert nothing.not_finite == 2
    assert math.isnan(nothing.smallest)


def test_a_record_is_strict_json_and_outlives_the_minibatch(
    tmp_path: Path, random_minibatch: Callable[..., Minibatch]
) -> None:
    minibatch = replace(
        random_minibatch(SPEC, 4),
        reward=np.array([1.0, np.nan, -2.0, np.inf], np.float32),
        keys=np.array([5, 8, 2**40, 3]),
        transitions_per_shard=np.array([3, 1]),
    )
    update = SkippedUpdate(math.nan, -math.inf, np.full(4, np.nan, np.float32))
    record = skipped_batch(minibatch, 17, update)
    minibatch.reward[:] = 0.0
    path = tmp_path / "skipped.jsonl"
    append_skipped(path, record)
    append_skipped(path, replace(record, version=18))

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines())
    assert (first["version"], second["version"]) == (17, 18)
    assert (first["loss"], first["grad_norm"]) == ("nan", "-inf")
    assert first["keys"] == [5, 8, 2**40, 3]
    assert first["transitions_per_shard"] == [3, 1]
    assert first["arrays"]["reward"] == {"smallest": -2.0, "largest": 1.0, "not_finite": 2}
    assert first["arrays"]["td_error"] == {"smallest": "nan", "largest": "nan", "not_finite": 4}
    assert set(first["arrays"]) == {"observation", "action", "reward", "discount", "weight", "td_error"}
