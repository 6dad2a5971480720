"""Environments that misbehave in whole runs: counted, replaced, and past a budget the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from qfleet_mishaps import allow
from qfleet_processes import LocalRun, set_flags
from qfleet_serial import SMALL, Recorder, train_serial

from cluster.runtime.failure import RunFailed


def overrides(folder: str, how: str, *more: str) -> list[str]:
    return ["env.id=qfleet_mishaps:Mishap", f"env.kwargs={{folder: {folder}, how: {how}}}", *more]


def newest(run_dir: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return line


def test_a_mishap_is_told_counted_and_survived(tmp_path: Path) -> None:
    folder = allow(tmp_path / "mishaps", 3)
    view = Recorder()
    train_serial(tmp_path / "run", [*SMALL, *overrides(folder, "raise")], view)
    counts = newest(tmp_path / "run")["env_restarts_total"]
    assert counts == {"raise": 3, "invalid": 0, "hang": 0, "memory": 0}
    told = [event for event in view.events if "made anew (raise: RuntimeError: a passing cloud)" in event]
    assert [event.partition("), ")[2] for event in told] == [
        f"{left} restarts of environments left" for left in (9, 8, 7)
    ]


def test_past_the_budget_the_run_ends_with_the_environments_traceback(tmp_path: Path) -> None:
    folder = allow(tmp_path / "mishaps", 3)
    with pytest.raises(RunFailed, match=r"^Traceback") as failed:
        train_serial(tmp_path / "run", [*SMALL, *overrides(folder, "raise", "actors.env_restarts=2")])
    message = str(failed.value)
    assert "RuntimeError: a passing cloud" in message
    assert message.splitlines()[-1].startswith("actor 0 raised the error above; actors.env_restarts = 2 were")


def test_the_count_outlives_a_checkpoint(tmp_path: Path) -> None:
    # In the serial runtime the coordinator begins anew at each of them.
    folder = allow(tmp_path / "mishaps", 3)
    every = "checkpoint.every_updates=40"
    with pytest.raises(RunFailed, match="a passing cloud"):
        train_serial(tmp_path / "run", [*SMALL, *overrides(folder, "raise", "actors.env_restarts=2", every)])


def small(folder: str, how: str, *more: str) -> list[str]:
    local = [each for each in SMALL if not each.startswith(("run.runtime", "stop."))]
    every = (*local, "actors.num_actors=1", "stop.target_return=1000000", "metrics.every_seconds=0.2")
    return set_flags((*every, *overrides(folder, how, *more)))


def test_an_actor_whose_environment_hangs_is_replaced(local_run: LocalRun, tmp_path: Path) -> None:
    folder = allow(tmp_path / "mishaps", 1)
    local_run.start(*small(folder, "hang", "actors.chunk_deadline_seconds=3", "stop.updates=300"))
    assert local_run.finish() == 0, local_run.errors
    assert local_run.has_line(
        "actor 0: its environments made anew (hang: it did not return from a chunk for "
    )
    assert local_run.has_line("was ended; replaced by incarnation 1")
    assert "wait_for_ever" in (local_run.run_dir / "logs" / "actor-0.stacks").read_text()
    line = newest(local_run.run_dir)
    assert line["env_restarts_total"] == {"raise": 0, "invalid": 0, "hang": 1, "memory": 0}
    assert line["role_restarts_total"]["actor"]["frozen"] == 1
    # Also of what the environment had started, in a session of its own.
    local_run.assert_nothing_left()


@pytest.mark.slow
def test_an_environment_that_always_hangs_ends_the_run_with_its_stack(
    local_run: LocalRun, tmp_path: Path
) -> None:
    folder = allow(tmp_path / "mishaps", 9)
    local_run.start(*small(folder, "hang", "actors.chunk_deadline_seconds=2", "actors.env_restarts=1"))
    assert local_run.finish() == 1
    assert "wait_for_ever" in local_run.errors
    assert local_run.errors.splitlines()[-1].startswith("actor 0 had this problem; actors.env_restarts")
    local_run.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_actor_whose_environments_leak_is_replaced(
    local_run: LocalRun, tmp_path: Path, backend: str
) -> None:
    folder = allow(tmp_path / "mishaps", 3)
    limit = "actors.memory_limit_bytes=900000000"
    local_run.start(*small(folder, "leak", limit, f"env.backend={backend}", "stop.seconds=60"))
    local_run.wait_for(lambda: local_run.has_line("(memory: its processes hold "), "the excess")
    local_run.wait_for(lambda: local_run.has_line("replaced by incarnation 1"), "the replacement")
    before = local_run.updates()
    local_run.wait_for(lambda: local_run.updates() > before + 200, "more updates")
    assert newest(local_run.run_dir)["env_restarts_total"]["memory"] == 1
