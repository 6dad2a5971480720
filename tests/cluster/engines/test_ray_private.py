"""The private names of Ray do what we rely on: a test for each function of ray_private.py.

A new release of Ray is admitted once these pass with it. Tests cluster/engines/ray_environment.py as well.
"""

from __future__ import annotations

import io
import os

import pytest
import ray
from qfleet_test_roles import Counter
from ray._private import services, worker
from ray._raylet import AuthenticationTokenLoader, Config

from cluster.engines.engine import Engine, Handle, Need
from cluster.engines.ray_environment import LEAN, private_environment
from cluster.engines.ray_private import (
    actor_id,
    draining_nodes,
    free_resources,
    loopback_only,
    mute_error_messages,
    node_of_actor,
    prefer_node,
    read_environment_again,
)


def printed() -> str:
    """What Ray's driver prints of a line that an actor's death brings."""
    out = io.StringIO()
    worker.print_worker_logs({"pid": "raylet", "ip": "127.0.0.1", "lines": ["an actor died"]}, out)
    return out.getvalue()


def test_error_messages_are_muted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_worker_logs_enabled", True)
    assert "an actor died" in printed()
    mute_error_messages()
    assert printed() == ""


def test_loopback_only_makes_ray_take_the_loopback_address_for_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda address: "192.0.2.7")
    assert services.get_node_ip_address() == "192.0.2.7"
    with loopback_only():
        assert services.get_node_ip_address() == "127.0.0.1"
    assert services.get_node_ip_address() == "192.0.2.7"


def test_this_process_sees_changed_variables_after_reading_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    period, token = Config.health_check_period_ms(), "ab" * 32
    with monkeypatch.context() as changed:
        changed.setenv("RAY_health_check_period_ms", str(period + 1))
        changed.setenv("RAY_AUTH_MODE", "token")
        changed.setenv("RAY_AUTH_TOKEN", token)
        read_environment_again()
        assert Config.health_check_period_ms() == period + 1
        assert AuthenticationTokenLoader.instance().get_raw_token() == token
    read_environment_again()
    assert Config.health_check_period_ms() == period


def test_a_private_environment_is_lean_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before, tokens = dict(os.environ), set()
    for _ in range(2):
        with private_environment():
            assert LEAN.items() <= os.environ.items()
            assert os.environ["RAY_AUTH_MODE"] == "token"
            assert services.get_node_ip_address() == "127.0.0.1"
            tokens.add(AuthenticationTokenLoader.instance().get_raw_token())
        assert dict(os.environ) == before
    assert {len(token) for token in tokens} == {64}
    assert len(tokens) == 2


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
