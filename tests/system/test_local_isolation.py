"""The local runtime keeps to itself: only the loopback interface, only its own token, beside other runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address
from pathlib import Path

import grpc
import psutil
import pytest
import ray
from qfleet_processes import LocalRun, adopting_orphans, set_flags

from cluster.engines.ray_engine import RayEngine

QUICK = set_flags(
    (
        "run.runtime=ray",
        "actors.num_actors=1",
        "actors.envs_per_actor=4",
        "actors.steps_per_chunk=16",
        "learner.hidden_sizes=[16]",
        "learner.batch_size=16",
        "pacing.learning_starts=128",
        "evaluation.every_updates=1000000",
        "stop.target_return=1000000",
        "metrics.every_seconds=0.2",
    )
)


@pytest.fixture
def two_runs(tmp_path: Path) -> Iterator[tuple[LocalRun, LocalRun]]:
    with adopting_orphans(), ExitStack() as stack:
        runs = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            run = LocalRun(folder)
            stack.callback(run.destroy)
            runs.append(run)
        yield runs[0], runs[1]


@pytest.mark.slow  # for its time only; that nothing listens outside is tested below as well
def test_two_runs_at_once_listen_on_loopback_only(two_runs: tuple[LocalRun, LocalRun]) -> None:
    for run in two_runs:
        run.start("CartPole-v1", *QUICK, "--set", "stop.updates=10000000")
    for run in two_runs:
        run.wait_for(lambda run=run: run.updates() > 0, "the first updates")
    assert listening_elsewhere() == []
    processes = psutil.Process().children(recursive=True)
    gcs = [process for process in processes if process.name().startswith("gcs_server")]
    assert len(gcs) == 2
    assert all(process.net_connections("inet") for process in gcs)
    for run in two_runs:
        run.send(signal.SIGTERM)
    assert [run.finish() for run in two_runs] == [143, 143]
    assert [run.errors for run in two_runs] == ["", ""]


def test_a_private_ray_takes_nobody_without_its_token() -> None:
    before = ray_environment()
    with closing(RayEngine(private=True)) as engine:
        engine.start()
        address = ray.get_runtime_context().gcs_address
        assert ip_address(address.rpartition(":")[0]).is_loopback
        assert listening_elsewhere() == []
        token = os.environ["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        assert is_alive(address, token)
        for stranger in (None, "0" * 64):
            with pytest.raises(grpc.RpcError) as refused:
                is_alive(address, stranger)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert ray_environment() == before


def listening_elsewhere() -> list[str]:
    """What this process and all it started listens on, other than the loopback interface."""
    return [
        f"{process.name()} on {each.laddr}"
        for process in (psutil.Process(), *psutil.Process().children(recursive=True))
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
        and not ip_address(each.laddr.ip.removeprefix("::ffff:")).is_loopback
    ]


def is_alive(address: str, token: str | None) -> bool:
    """Asks the GCS for a sign of life, as a bare gRPC call."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        call(b"", metadata=metadata, timeout=10)
    return True


def ray_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "OMP_"))}
