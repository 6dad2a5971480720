"""Every use of Ray's private names, each in a function of its own.

Owns the dependence on names that any release of Ray may change: pyproject.toml therefore admits only the
series that tests/cluster/engines/test_ray_private.py was run against. Must not import torch or gymnasium.
"""

import faulthandler
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, state, worker
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.engines.threads import SINGLE_THREADED

_TERMINATE_SECONDS = 2.0
_AGENTS = {
    "dashboard agent": ("dashboard/agent.py", "ray::DashboardAgent"),
    "runtime environment agent": ("runtime_env/agent/main.py", "ray::RuntimeEnvAgent"),
}
"""Agent -> its program, and the title that it gives itself once it is up."""

LEAN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_metrics_report_interval_ms": "600000",
    "RAY_event_stats_print_interval_ms": "3600000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment of a private Ray: 8 processes and 461 MB instead of 21 and 757 MB."""


@contextmanager
def private_environment() -> Iterator[None]:
    """Within the block, a Ray that this process starts has few processes, listens on the loopback interface
    only, and has its own token. Afterwards the environment is as before.

    Ray binds to the loopback interface if it is told that it cannot span machines, else to all interfaces.
    Child processes read that setting and the token from the environment. This process read them when it
    imported Ray, so its own copies are changed here too.
    """
    values = {
        **LEAN,
        **SINGLE_THREADED,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    before = {name: os.environ[name] for name in values.keys() & os.environ.keys()}
    spans_machines = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(values)
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_environment_again()
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)
        ray_constants.ENABLE_RAY_CLUSTER = spans_machines
        _read_environment_again()


def _read_environment_again() -> None:
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def quiet_driver() -> Iterator[None]:
    """Keeps Ray from printing a paragraph for each dead actor, which the coordinator reports in one line.

    `ray.init(log_to_driver=False)` mutes what actors print, not these messages. The flag is read whenever
    Ray's driver prints. Afterwards it is as before, and so is all that `ray.init` changes in this process.
    """
    logger, name, faults = logging.getLogger("ray"), "PYTHONBREAKPOINT", faulthandler.is_enabled()
    before = worker._worker_logs_enabled, logger.level, logger.handlers[:], os.environ.get(name)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled, level, logger.handlers[:], breakpoint_hook = before
        logger.setLevel(level)
        os.environ.pop(name, None)
        if breakpoint_hook is not None:
            os.environ[name] = breakpoint_hook
        if not faults:
            faulthandler.disable()


def start_on_loopback(temp_dir: Path, runtime_env: dict[str, Any]) -> None:
    """Starts a Ray whose processes listen at 127.0.0.1 only and keep sockets and logs in temp_dir.

    No public argument of `ray.init` sets either. Call it within `private_environment`.
    """
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        runtime_env=runtime_env,
        _temp_dir=str(temp_dir),
    )
    # Ray's agents notice a killed raylet at once, but then they wait a minute for a dead GCS to hear of it,
    # unless the raylet's log says that it was ended on purpose.
    node: Node = worker._global_node
    with (Path(node.get_logs_dir_path()) / "raylet.out").open("a", encoding="utf-8") as log:
        log.write("Raylet received SIGTERM is what it would say, but it blocks that signal.\n")


def own_servers() -> dict[str, psutil.Process]:
    """Name -> process of each server that `ray.init` has started here; empty if it joined a Ray."""
    node: Node | None = worker._global_node
    if node is None or not node.is_head():
        return {}
    return {kind: psutil.Process(infos[0].process.pid) for kind, infos in node.all_processes.items() if infos}


def servers_here() -> dict[str, psutil.Process]:
    """Name -> process of the raylet with its agents and, if it runs on this machine, the GCS of this driver.

    A raylet that has lost an agent ends itself some seconds later.
    """
    node: Node = worker.global_worker.node
    # A session is one Ray; its name is an argument of each of its servers.
    session, socket = f"--session-name={node.session_name}", f"--raylet_socket_name={node.raylet_socket_name}"
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            name, arguments = process.name(), process.cmdline()
            if (name == "gcs_server" and session in arguments) or (name == "raylet" and socket in arguments):
                found[name] = process
    raylet = found.get("raylet")
    for process in raylet.children() if raylet else ():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            found |= {
                name: process for name, signs in _AGENTS.items() if any(sign in words for sign in signs)
            }
    return found


def kill_servers_at_shutdown() -> None:
    """Makes ray.shutdown end the servers by SIGKILL: they block SIGTERM, which it would send and wait."""
    node: Node = worker._global_node
    kill = node.kill_all_processes
    node.kill_all_processes = lambda **_: kill(check_alive=False)


def question_to_gcs() -> Callable[[float], bool]:
    """A function that asks this Ray's GCS, and returns whether it answered within so many seconds."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)

    def answers(seconds: float) -> bool:
        try:
            client.check_alive([], timeout=seconds)
        except RayError:
            return False
        return True

    return answers


def terminate(actors: Iterable[Any]) -> None:
    """Asks the processes of actors to end, without the GCS, through which ray.kill goes."""
    asked = [actor.__ray_terminate__.remote() for actor in actors]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=_TERMINATE_SECONDS, fetch_local=False)


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
    """The ids of nodes that are drained or about to be preempted, which no public call returns."""
    return frozenset(state.state.get_draining_nodes())


def prefer_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Places an actor on the node while it has room, else on another.

    With the public arguments alone, an actor waits for room on a node that is full.
    """
    return NodeAffinitySchedulingStrategy(node_id, soft=True, _spill_on_unavailable=True)
