"""Whole runs whose learner has two ranks: they learn, one is killed or frozen, and another number resumes."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from qfleet_processes import LocalRun, run_qfleet, set_flags

ENDLESS = "stop.updates=10000000"
SMALL = (
    "replay.num_shards=2",
    "replay.sampling=prioritized",
    "actors.num_actors=1",
    "actors.envs_per_actor=4",
    "actors.steps_per_chunk=16",
    "learner.hidden_sizes=[16]",
    "learner.batch_size=17",
    "learner.updates_per_chunk=16",
    "pacing.learning_starts=128",
    "pacing.samples_per_insert=4",
    "evaluation.every_updates=1000",
    "evaluation.episodes=2",
    "metrics.every_seconds=0.2",
    "stop.target_return=1000000",
)


def arguments(*overrides: str, ranks: int = 2) -> list[str]:
    return ["CartPole-v1", *set_flags((*SMALL, f"learner.num_learners={ranks}", *overrides))]


def newest(run_dir: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return line


def replaced(run: LocalRun) -> list[str]:
    """What the run's log says of replaced ranks."""
    events = (run.run_dir / "logs" / "events.log").read_text()
    return [line for line in events.splitlines() if "ranks are replaced" in line]


def test_two_ranks_learn_and_are_replaced_together_when_one_is_killed(local_run: LocalRun) -> None:
    local_run.start(*arguments("stop.updates=500"))
    local_run.wait_for(lambda: local_run.updates() > 50, "updates")
    victim = local_run.pids_of("LearnerRole")[1]
    os.kill(victim, signal.SIGKILL)
    local_run.wait_for(lambda: bool(replaced(local_run)), "the replacement of both")
    assert local_run.finish() == 0
    assert local_run.errors == ""
    (told,) = replaced(local_run)
    assert re.search(rf"learner rank \d \(process {victim}\)|learner \(process {victim}\)", told)
    assert "died; all 2 ranks are replaced by incarnation 1, 9 replacements left" in told
    last = newest(local_run.run_dir)
    assert last["weights_version"] == 500
    assert (last["restarts_total"], last["unequal_ranks_total"]) == (1, 0)
    assert last["sampled_transitions_total"] == 17 * last["updates_total"]
    assert last["role_seconds_total"]["learner"]["exchange"] > 0.0
    local_run.assert_nothing_left()


@pytest.mark.slow
def test_a_frozen_rank_costs_one_restart(local_run: LocalRun) -> None:
    local_run.start(*arguments(ENDLESS, "run.frozen_seconds=3"))
    local_run.wait_for(lambda: local_run.updates() > 300, "updates")
    os.kill(local_run.pids_of("LearnerRole")[1], signal.SIGSTOP)
    local_run.wait_for(lambda: bool(replaced(local_run)), "the replacement of both")
    before = local_run.updates()
    local_run.wait_for(lambda: local_run.updates() > before + 300, "more updates")
    local_run.send(signal.SIGTERM)
    assert local_run.finish() == 143
    (told,) = replaced(local_run)
    assert "was killed; all 2 ranks are replaced by incarnation 1, 9 replacements left" in told
    local_run.assert_nothing_left()


@pytest.mark.slow
def test_another_number_of_ranks_resumes(local_run: LocalRun) -> None:
    """Two, one, two: totals go on, and what was sampled is what the updates took."""
    version = 0
    for ranks, resume in ((2, ()), (1, ("--resume",)), (2, ("--resume",))):
        version += 1_000
        local_run.start(*arguments(f"stop.updates={version}", ranks=ranks), *resume)
        assert local_run.finish() == 0
        assert local_run.errors == ""
        last = newest(local_run.run_dir)
        assert last["weights_version"] == last["updates_total"] == version
        assert last["sampled_transitions_total"] == 17 * version
    totals = [
        json.loads(line)["inserted_transitions_total"]
        for line in (local_run.run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    assert totals == sorted(totals)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_two_ranks_solve_cartpole(tmp_path: Path, seed: int) -> None:
    run_dir = tmp_path / "run"
    done = run_qfleet(
        "train", "CartPole-v1", "--run-dir", str(run_dir), "--seed", str(seed),
        *set_flags(["learner.num_learners=2"]), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the target return 490 was reached and confirmed" in done.stdout
    assert newest(run_dir)["unequal_ranks_total"] == 0


def test_each_rank_needs_a_gpu_of_its_own_if_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    run_dir = tmp_path / "run"
    done = run_qfleet("train", *arguments(), "--run-dir", str(run_dir), cwd=tmp_path)
    assert done.returncode == 2
    assert "learner.num_learners is 2, each takes a GPU, and there are 1" in done.stderr
    assert not run_dir.exists()


def test_the_serial_runtime_has_one_rank(tmp_path: Path) -> None:
    flags = set_flags(["learner.num_learners=2", "run.runtime=serial"])
    done = run_qfleet("plan", "CartPole-v1", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert "learner.num_learners is 2 in the serial runtime, which is one process" in done.stderr
