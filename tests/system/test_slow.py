"""A role that is slow but works is left alone; one that hangs is replaced within twice its limit.

The limits are shorter than the defaults: 3 s for a shard, so 6 s for the learner and 12 s for the evaluator;
4 s for an actor.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from qfleet_processes import LocalRun, set_flags
from qfleet_serial import SMALL
from qfleet_slow import FOLDER

LIMITS = {"actor": 4.0, "learner": 6.0, "evaluator": 12.0}
# Each chunk, and each evaluation of 2,500 steps of two lanes, takes far longer than its limit.
STEP_SECONDS = {"actor": 0.1, "learner": 0.3, "evaluator": 0.004}

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment and the network look for how to behave."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "behavior"))
    (tmp_path / "behavior").mkdir()
    return tmp_path / "behavior"


def start(local_run: LocalRun, *more: str) -> None:
    own = [each for each in SMALL if not each.startswith(("run.runtime", "stop.", "evaluation."))]
    local_run.start(
        *set_flags(
            [
                *own,
                "env.id=qfleet_slow:Endless",
                "learner.network=qfleet_slow:Slow",
                "learner.updates_per_chunk=64",
                "actors.num_actors=1",
                "actors.steps_per_chunk=64",
                f"actors.chunk_deadline_seconds={LIMITS['actor']:g}",
                "run.frozen_seconds=3",
                "evaluation.every_updates=4",
                "evaluation.episodes=2",
                "stop.target_return=null",
                "metrics.every_seconds=0.2",
                *more,
            ]
        )
    )


def newest(local_run: LocalRun) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((local_run.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return line


@pytest.mark.parametrize("role", list(LIMITS))
def test_a_slow_role_is_left_alone(local_run: LocalRun, folder: Path, role: str) -> None:
    (folder / f"{role}-seconds").write_text(f"{STEP_SECONDS[role]}")
    start(
        local_run, "pacing.learning_starts=32", "stop.updates=70" if role == "learner" else "stop.seconds=45"
    )
    assert local_run.finish() == 0, local_run.errors
    line = newest(local_run)
    assert line["restarts_total"] == 0
    assert sum(line["env_restarts_total"].values()) == 0
    assert line["updates_total"] >= 20
    assert line["evaluations_total"] >= 1
    assert "best_return_mean" in line
    local_run.assert_nothing_left()


@pytest.mark.parametrize("role", list(LIMITS))
def test_a_role_that_hangs_is_replaced_in_time(local_run: LocalRun, folder: Path, role: str) -> None:
    start(local_run)
    local_run.wait_for(lambda: local_run.updates() > 100, "a run that learns")
    local_run.wait_for(
        lambda: (local_run.run_dir / "evaluations.jsonl").read_text() != "", "the first evaluation"
    )
    (folder / f"{role}-hang").touch()
    silent = r"(?:did not answer|did not return from a chunk) for (\d+) s"
    local_run.wait_for(lambda: local_run.has_line("replaced by incarnation 1"), "the replacement")
    said = [re.search(silent, text) for text in local_run.lines if text.find(role) >= 0]
    (seconds,) = [int(found[1]) for found in said if found]
    assert LIMITS[role] - 1 <= seconds <= 2 * LIMITS[role]
    assert newest(local_run)["role_restarts_total"][role]["frozen"] <= 1
    before = local_run.updates()
    local_run.wait_for(lambda: local_run.updates() > before + 100, "more updates")
