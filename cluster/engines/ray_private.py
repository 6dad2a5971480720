"""Every use of a private name of Ray, each behind a function that says what it does.

Owns what no release of Ray promises to keep: pyproject.toml therefore admits only the series that
tests/cluster/engines/test_ray_private.py was run against. Must not import anything of the project.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, state, worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def mute_error_messages() -> None:
    """Keeps Ray from printing a paragraph for each dead actor: the coordinator reports it in one line.

    `ray.init(log_to_driver=False)` mutes what actors print, not these messages. The flag is read whenever
    Ray's driver prints.
    """
    worker._worker_logs_enabled = False


def start_on_loopback(temp_dir: Path) -> None:
    """Starts a Ray whose processes listen at 127.0.0.1 only and keep sockets and logs in temp_dir.

    No public argument of `ray.init` sets either. Everything binds to the loopback interface only within
    `loopback_only`.
    """
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        _temp_dir=str(temp_dir),
    )


@contextmanager
def loopback_only() -> Iterator[None]:
    """Within the block, this process takes Ray for unable to span machines, so that it binds to loopback.

    Child processes learn the same from RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0; this process read that variable
    when it imported Ray.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def read_environment_again() -> None:
    """Makes this process see changed RAY_* variables: it read them, and the token, on importing Ray."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def actor_id(actor: Any) -> str:
    """The id of an actor's handle in hexadecimal digits, as `ref.task_id().actor_id().hex()` gives it."""
    return str(actor._actor_id.hex())


def node_of_actor(actor: Any) -> str:
    """The id of the node that a started actor is on.

    The public `ray.util.state.get_actor` needs the dashboard, which a cluster may run without.
    """
    return str(state.actors(actor_id(actor))["Address"]["NodeID"])


def free_resources() -> dict[str, dict[str, float]]:
    """Node id -> resource -> amount that is free, as the living nodes last reported it.

    The public `ray.available_resources` adds up all nodes.
    """
    return dict(state.available_resources_per_node())


def draining_nodes() -> frozenset[str]:
    """The ids of nodes that are drained or were told that they will be preempted; no public call tells."""
    return frozenset(state.state.get_draining_nodes())


def prefer_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Places an actor on the node while it has room, else on another.

    With the public arguments alone, an actor waits for room on a node that is full.
    """
    return NodeAffinitySchedulingStrategy(node_id, soft=True, _spill_on_unavailable=True)
