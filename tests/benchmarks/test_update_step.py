"""The two loops that `benchmarks.update_step` compares learn from the same minibatches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.update_step import CASES, BareLoop, Case, Minibatches, updates_per_second  # noqa: E402
from learner.loop import Learner  # noqa: E402


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_both_loops_run_with_the_settings_as_they_come(case: Case) -> None:
    source = Minibatches(case)
    bare = BareLoop(case, source.held)
    before = [weight.clone() for weight in bare.online.parameters()]
    learner = Learner(case.config, case.spec, source, seed=0, threads=1)
    assert updates_per_second(bare, 1) > 0
    assert updates_per_second(learner, 1) > 0
    assert any((weight != old).any() for weight, old in zip(bare.online.parameters(), before, strict=True))
