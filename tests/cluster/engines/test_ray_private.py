"""The private names of Ray do what we rely on: a test for each function of ray_private.py.

A new release of Ray is admitted once these pass with it.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import psutil
import pytest
import ray
from qfleet_test_roles import Counter
from ray._private import services, worker
from ray._raylet import AuthenticationTokenLoader, Config

from cluster.engines.engine import Engine, Handle, Need
from cluster.engines.ray_private import (
    LEAN,
    actor_id,
    draining_nodes,
    free_resources,
    node_of_actor,
    own_servers,
    prefer_node,
    private_environment,
    question_to_gcs,
    quiet_driver,
    servers_here,
)
from cluster.engines.signals import STOP_SIGNALS


def printed() -> str:
    """What Ray's driver prints of a line that an actor's death brings."""
    out = io.StringIO()
    worker.print_worker_logs({"pid": "raylet", "ip": "127.0.0.1", "lines": ["an actor died"]}, out)
    return out.getvalue()


def test_error_messages_are_muted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_worker_logs_enabled", True)
    assert "an actor died" in printed()
    with quiet_driver():
        assert printed() == ""
    assert "an actor died" in printed()


def test_a_private_ray_takes_the_loopback_address_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda address: "192.0.2.7")
    assert services.get_node_ip_address() == "192.0.2.7"
    with private_environment():
        assert services.get_node_ip_address() == "127.0.0.1"
    assert services.get_node_ip_address() == "192.0.2.7"


def test_this_process_sees_the_changed_settings() -> None:
    before = Config.metrics_report_interval_ms()
    with private_environment():
        assert Config.metrics_report_interval_ms() == 600_000 != before
    assert Config.metrics_report_interval_ms() == before


def test_each_private_ray_has_a_token_of_its_own() -> None:
    tokens = set()
    for _ in range(2):
        with private_environment():
            tokens.add(AuthenticationTokenLoader.instance().get_raw_token())
            assert os.environ["RAY_AUTH_TOKEN"] in tokens
    assert [len(token) for token in tokens] == [64, 64]


def test_the_environment_is_lean_and_afterwards_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = dict(os.environ)
    with private_environment():
        assert LEAN.items() <= os.environ.items()
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert dict(os.environ) == before


def test_a_preferred_node_is_no_condition() -> None:
    node_id = "ab" * 28
    strategy = prefer_node(node_id)
    assert strategy.node_id == node_id
    assert strategy.soft
    assert strategy._spill_on_unavailable


@pytest.fixture
def counter(ray_engine: Engine) -> Handle:
    handle = ray_engine.spawn("counter", Counter, need=Need(cpus=0.0))
    ray_engine.get(ray_engine.call(handle, Counter.add, 1)[0])
    return handle


def test_actors_are_known_by_id_and_node(counter: Handle) -> None:
    ref = counter.target.history.remote()
    assert actor_id(counter.target) == ref.task_id().actor_id().hex()
    assert node_of_actor(counter.target) == ray.get_runtime_context().get_node_id()


def test_free_resources_are_given_by_node(ray_engine: Engine) -> None:
    ((node_id, free),) = free_resources().items()
    assert node_id == ray.get_runtime_context().get_node_id()
    assert free["CPU"] == ray.cluster_resources()["CPU"]
    assert free["memory"] > 0


def test_no_node_drains_until_it_is_told(ray_engine: Engine) -> None:
    assert draining_nodes() == frozenset()


def test_an_actor_starts_where_its_preferred_node_does_not_exist(ray_engine: Engine) -> None:
    remote = ray.remote(Counter).options(num_cpus=0, scheduling_strategy=prefer_node("ab" * 28))
    assert ray.get(remote.remote().add.remote(3), timeout=60) == 3


def test_the_servers_of_a_private_ray_are_known_and_block_what_the_driver_handles(ray_engine: Engine) -> None:
    servers = servers_here()
    assert set(servers) == {"gcs_server", "raylet", "dashboard agent", "runtime environment agent"}
    assert {name: servers[name] for name in ("gcs_server", "raylet")}.items() <= own_servers().items()
    for server in (own_servers() | servers).values():
        blocked = int(re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{server.pid}/status").read_text())[1], 16)
        assert all(blocked >> (number - 1) & 1 for number in STOP_SIGNALS)


def test_a_gcs_that_hangs_does_not_answer(ray_engine: Engine) -> None:
    answers = question_to_gcs()
    assert answers(10.0)
    gcs = servers_here()["gcs_server"]
    gcs.suspend()
    try:
        while gcs.status() != psutil.STATUS_STOPPED:
            pass
        assert not answers(0.5)
    finally:
        gcs.resume()
    assert answers(10.0)
