"""`ray job submit` and `ray job stop` against a real head with token authentication."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from qfleet_ray_head import RAY, RayHead, listening_elsewhere, wait_for

from learner.weights import load_weights


def submit(head: RayHead, *arguments: str, job: str, wait: bool = True) -> tuple[int, str]:
    """Submits a job as the README does; returns its exit status and output."""
    options = ["--address", head.jobs, "--submission-id", job, "--runtime-env", "deploy/job-runtime-env.yaml"]
    if not wait:
        options.append("--no-wait")
    done = head.run(
        str(RAY), "job", "submit", *options, "--working-dir", ".", "--",
        "python", "-m", "qfleet", "train", *arguments,
    )  # fmt: skip
    return done.returncode, done.stdout


def logs(head: RayHead, job: str) -> str:
    return head.run(str(RAY), "job", "logs", "--address", head.jobs, job).stdout


def test_a_submitted_job_solves_cartpole_on_the_cluster(head: RayHead, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    status, said = submit(head, "configs/cartpole.yaml", "--run-dir", str(run_dir), job="solves")
    assert status == 0, said[-3000:] + head.log()
    assert "CartPole-v1 on the cluster runtime" in said
    assert "updates/s" in said  # progress, as lines
    assert "the target return 490 was reached and confirmed" in said
    best = load_weights(run_dir / "weights" / "best.safetensors")[1]
    assert float(best["return_mean"]) >= 490
    # The code came from the copy that Ray shipped, and everything listened on the loopback interface only.
    command = json.loads((run_dir / "provenance.json").read_text())["command"][0]
    assert "working_dir_files" in command
    assert listening_elsewhere(head) == []


@pytest.mark.slow
def test_a_stopped_job_saves_and_ends_in_time(head: RayHead, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # On a busy machine the preset's own end may come before a version is confirmed.
    endless = ("--set", "stop.target_return=100000", "--set", "stop.env_steps=1000000000")
    status, _ = submit(
        head, "configs/cartpole.yaml", "--run-dir", str(run_dir), *endless, job="stopped", wait=False
    )
    assert status == 0
    wait_for(lambda: "greedy return" in logs(head, "stopped"), "a version that was evaluated")
    stopped = head.run(str(RAY), "job", "stop", "--address", head.jobs, "stopped")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    said = logs(head, "stopped")
    assert "stopped by SIGTERM" in said
    assert "was stopped" in head.run(str(RAY), "job", "status", "--address", head.jobs, "stopped").stdout
    assert (run_dir / "weights" / "latest.safetensors").is_file()
    assert list((run_dir / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_jobs_bad_input_is_its_exit_status(head: RayHead, tmp_path: Path) -> None:
    status, said = submit(head, "CartPole-v1", "--set", "learner.batchsize=3", job="misspelt")
    assert status == 1, said
    assert "did you mean learner.batch_size?" in said
    assert "exit code 2" in said
    # A relative folder would be in the copy that Ray deletes.
    status, said = submit(head, "CartPole-v1", "--run-dir", "runs/mine", job="relative")
    assert status == 1
    assert "give an absolute path" in said


@pytest.mark.slow
def test_nobody_submits_without_the_token(head: RayHead) -> None:
    refused = head.run(str(RAY), "job", "list", "--address", head.jobs, RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode != 0
    assert "403" in refused.stdout + refused.stderr or "nvalid" in refused.stdout + refused.stderr
