"""A run across three hosts with networks of their own: code shipped, roles spread, one host lost for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from qfleet_hosts import Host, ray_hosts, what_is_missing
from qfleet_processes import recorded_updates
from qfleet_ray_head import wait_for

pytestmark = pytest.mark.slow

JOBS = ["--address", "http://10.77.0.1:8265"]
SETTINGS = {
    "actors.num_actors": "2",
    "replay.num_shards": "2",
    "replay.persist": "continuous",
    # Large enough that windows go through shared memory where shard and learner share a host.
    "learner.batch_size": "512",
    "pacing.learning_starts": "1000",
    "stop.target_return": "100000",
    "stop.env_steps": "100000000",
}


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    reason = what_is_missing()
    if reason is not None:
        pytest.skip(reason)
    # Room for everything on either of two, so that one may be lost.
    with ray_hosts((0, 7, 7)) as started:
        yield started


def maps_windows(host: Host) -> list[bool]:
    """For each shard on the host, whether it writes into the learner's own memory."""
    mapped = [
        {entry.path for entry in process.memory_maps(grouped=False)} for process in host.roles("ShardRole")
    ]
    return [any("qfleet-windows" in path for path in paths) for paths in mapped]


def test_a_run_across_hosts_survives_the_loss_of_one(hosts: list[Host], tmp_path: Path) -> None:
    head, *workers = hosts

    def said() -> str:
        return head.run("ray", "job", "logs", *JOBS, "across").stdout

    def updates() -> int:
        return recorded_updates(tmp_path / "run")

    overrides = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    submitted = head.run(
        "ray", "job", "submit", *JOBS, "--submission-id", "across", "--no-wait",
        "--runtime-env", "deploy/job-runtime-env.yaml", "--working-dir", ".", "--",
        "python", "-m", "qfleet", "train", "configs/cartpole.yaml", "--run-dir", str(tmp_path / "run"),
        *overrides,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    wait_for(lambda: updates() > 200, "the first updates")

    # Spread: a shard on each host, nothing on the head, which declares no CPUs.
    assert [len(host.roles("ShardRole")) for host in hosts] == [0, 1, 1]
    assert sum(len(host.roles("ActorRole")) for host in hosts) == 2
    # Windows go through shared memory on the learner's host only; the other shard's come with its replies.
    (learners,) = [host for host in workers if host.roles("LearnerRole")]
    (other,) = [host for host in workers if host is not learners]
    wait_for(lambda: maps_windows(learners) == [True], "windows in the learner's own memory")
    assert maps_windows(other) == [False]

    other.die()
    wait_for(lambda: " is back " in said(), "the lost shard on another host")
    before = updates()
    wait_for(lambda: updates() > before + 500, "training that goes on")
    assert len(learners.roles("ShardRole")) == 2
    assert head.run("ray", "job", "stop", *JOBS, "across").returncode == 0
    assert "stopped by SIGTERM" in said()
