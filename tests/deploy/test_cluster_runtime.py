"""The cluster runtime on a head of its own: room and places, the wait for room, and refusals.

Tests cluster/engines/ray_placement.py through the command.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qfleet_processes import set_flags
from qfleet_ray_head import RayHead, ray_head

SMALL = set_flags(
    (
        "actors.envs_per_actor=4",
        "learner.batch_size=16",
        "pacing.learning_starts=128",
        "evaluation.every_updates=1000000",
        "stop.updates=64",
    )
)


@pytest.fixture(scope="module")
def small_head() -> Iterator[RayHead]:
    """Room for the core and one actor."""
    with ray_head(cpus=4, dashboard=False) as started:
        yield started


def qfleet(head: RayHead, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return head.run(sys.executable, "-m", "qfleet", *arguments, **{"RAY_ADDRESS": head.address, **env})


def test_plan_asks_the_cluster_and_starts_nothing(small_head: RayHead) -> None:
    planned = qfleet(
        small_head, "plan", "CartPole-v1", "--set", "actors.num_actors=3", "--set", "actors.min_actors=1"
    )
    assert planned.returncode == 0, planned.stderr
    assert "1 machine with 4 CPUs, 0 GPUs" in planned.stdout
    assert "has room" in planned.stdout
    assert "127.0.0.1: shard, learner, evaluator, actor" in planned.stdout
    assert "2 more actors will join" in planned.stdout


@pytest.mark.slow
def test_a_run_without_room_waits_and_says_what_is_missing(small_head: RayHead, tmp_path: Path) -> None:
    arguments = ["train", "CartPole-v1", *SMALL, "--run-dir", str(tmp_path / "run")]
    wanting = ["--set", "actors.num_actors=3", "--set", "run.wait_for_cluster_seconds=1"]
    ended = qfleet(small_head, *arguments, *wanting)
    assert ended.returncode == 1
    assert "waiting up to 1 s for room: the run needs 6 CPUs" in ended.stdout
    assert "Waited run.wait_for_cluster_seconds = 1" in ended.stderr
    assert "actors.min_actors" in ended.stderr
    # With leave to begin with one actor it does so at once, and nothing of the first run holds room.
    ended = qfleet(
        small_head, "train", "CartPole-v1", *SMALL, "--run-dir", str(tmp_path / "few"), *wanting,
        "--set", "actors.min_actors=1",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "waiting up to" not in ended.stdout
    assert "127.0.0.1: shard, learner, evaluator, actor" in ended.stdout


@pytest.mark.parametrize(
    ("address", "token", "words"),
    [
        ("http://127.0.0.1:8265", None, "use ray job submit"),
        ("127.0.0.1:1", None, "refused"),
        pytest.param(None, "0" * 64, "Authentication token", marks=pytest.mark.slow),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_bad_input(
    small_head: RayHead, tmp_path: Path, address: str | None, token: str | None, words: str
) -> None:
    wrong = {"RAY_ADDRESS": address or small_head.address}
    if token is not None:
        wrong["RAY_AUTH_TOKEN"] = token
    ended = qfleet(small_head, "train", "CartPole-v1", "--run-dir", str(tmp_path / "run"), **wrong)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert f"RAY_ADDRESS is {wrong['RAY_ADDRESS']}: " in ended.stderr
    assert words in ended.stderr
