"""The Ray engine: every role an actor process, on this machine or on a cluster.

Owns starting and ending Ray and translating its errors; must not import torch or gymnasium.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_exceptions
from ray._private import ray_constants
from ray._private import state as ray_state
from ray._private import worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.engines.engine import (
    EngineError,
    Handle,
    Need,
    ObjectLost,
    Ref,
    RoleDied,
    RoleError,
    RoleOutOfMemory,
)
from cluster.engines.placement import Claims, Node, Placement, place, room, summary, total
from cluster.engines.threads import SINGLE_THREADED

# Without these a local Ray starts 21 processes and 757 MB instead of 8 and 461 MB.
_LEAN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_metrics_report_interval_ms": "600000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_CONNECT_SECONDS = 5.0
_VIEW_SECONDS = 5.0


class RayCalls:
    """Calls between roles; travels to every role as an argument."""

    def __init__(self) -> None:
        self._role_names: dict[str, str] = {}

    def call(self, handle: Handle, method: str, *args: Any, returns: int = 1) -> tuple[Ref, ...]:
        """Submits the actor call; see Calls.call."""
        self._role_names[handle.target._actor_id.hex()] = handle.name
        refs = getattr(handle.target, method).options(num_returns=returns).remote(*args)
        return (refs,) if returns == 1 else tuple(refs)

    def wait(self, refs: Sequence[Ref], timeout_seconds: float) -> list[Ref]:
        """See Calls.wait."""
        pending = list(refs)
        if not pending:
            time.sleep(timeout_seconds)  # ray.wait would return at once, and the caller spin
            return []
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout_seconds, fetch_local=False)
        if ready and len(pending) > 1:
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
        return list(ready)

    def get(self, ref: Ref) -> Any:
        """See Calls.get; arrays come back read-only and without a copy."""
        try:
            return ray.get(ref)
        except ray_exceptions.RayTaskError as error:
            # A role that failed because another role did reports that one, not itself.
            if isinstance(error.cause, EngineError):
                raise error.cause from None
            raise RoleError(self._name(ref), str(error)) from None
        except ray_exceptions.RayActorError as error:
            kind = RoleError if error.actor_init_failed else RoleDied
            raise kind(self._name(ref), str(error)) from None
        except (ray_exceptions.ObjectLostError, ray_exceptions.NodeDiedError) as error:
            raise ObjectLost(self._name(ref), str(error)) from None
        except ray_exceptions.OutOfMemoryError as error:
            raise RoleOutOfMemory(self._name(ref), str(error)) from None
        except ray_exceptions.RayError as error:
            kind = RoleDied if isinstance(error, ray_exceptions.WorkerCrashedError) else RoleError
            raise kind(self._name(ref), f"{type(error).__name__}: {error}") from None

    def put(self, value: Any) -> Ref:
        """See Calls.put."""
        return Ref(ray.put(value))

    def _name(self, ref: Any) -> str:
        return self._role_names.get(ref.task_id().actor_id().hex(), "a role")


class RayEngine(RayCalls):
    """Owns this driver's connection to Ray: a private one on this machine, or the cluster of RAY_ADDRESS."""

    def __init__(self, *, private: bool) -> None:
        super().__init__()
        self._private = private
        self._handles: list[Handle] = []
        self._reserved: dict[str, Need] = {}
        self._slots: dict[str, tuple[PlacementGroup, int]] = {}
        self._hints: dict[str, str] = {}
        self._closing = ExitStack()
        # Unix socket paths may have 107 bytes, of which Ray needs most: so not in the run directory.
        self._temp_dir = Path(tempfile.mkdtemp(prefix="qf-")) if private else None

    def start(self) -> None:
        """Starts or joins Ray.

        A private Ray listens on the loopback interface only, and takes only calls that carry its token, which
        is made anew each time and which other users of the machine cannot read.

        Raises:
            OSError: (ConnectionError) where RAY_ADDRESS leads nowhere, or the cluster refuses this user.
        """
        # Deaths are reported by the coordinator, in one line; Ray would print a paragraph beside it.
        ray_worker._worker_logs_enabled = False
        if not self._private:
            _require_listener(os.environ.get("RAY_ADDRESS", ""))
            try:
                ray.init(address="auto", log_to_driver=False, logging_level="error")
            except (ray_exceptions.AuthenticationError, RuntimeError) as error:
                raise ConnectionError(str(error).strip().splitlines()[0]) from error
            return
        self._closing.enter_context(private_environment())
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self._temp_dir),
        )

    @property
    def calls(self) -> RayCalls:
        """See Engine.calls."""
        return RayCalls()

    @property
    def gpus(self) -> float:
        """GPUs of the whole cluster."""
        return float(ray.cluster_resources().get("GPU", 0.0))

    def nodes(self) -> tuple[Node, ...]:
        """The machines of the cluster and what is free on them."""
        free = ray_state.available_resources_per_node()
        return tuple(
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                cpus=left.get("CPU", 0.0),
                gpus=left.get("GPU", 0.0),
                memory_bytes=int(left.get("memory", 0.0)),
                gpus_declared=node["Resources"].get("GPU", 0.0),
            )
            for node in ray.nodes()
            if node["Alive"] and (left := free.get(node["NodeID"])) is not None
        )

    def reserve(
        self,
        claims: Claims,
        *,
        wait_seconds: float,
        say: Callable[[str], None],
        stopped: Callable[[], object],
    ) -> None:
        """Sets room of a cluster apart for the core of a run, and waits until the required actors fit, too.

        The core keeps its room when one of its roles dies, so that no waiting actor takes it. An autoscaler
        sees what is waited for. Returns early once stopped() is true; say is told of the waiting and of the
        places.

        Raises:
            TimeoutError: naming what is missing, after wait_seconds.
        """
        wait = _Wait(claims, self.nodes, time.monotonic() + wait_seconds, wait_seconds, say, stopped)
        # Shards by themselves: one group for all of the core would spread it, but maybe not them.
        shards = {name: need for name, need in claims.core.items() if name.startswith("shard")}
        others = {name: need for name, need in claims.core.items() if name not in shards}
        for needs in (shards, others):
            group = self._group(needs, "SPREAD")
            self._slots |= {name: (group, index) for index, name in enumerate(needs)}
        for group, _ in self._slots.values():
            if not wait.until(partial(group.wait, 1)):
                return
        self._reserved = {**claims.core, **claims.actors}
        placement = self._place_actors(claims)
        if placement.missing:
            # Claimed for a moment only: actors come and go, and must not hold room that they do not use.
            actors = self._group(
                {name: claims.actors[name] for name in placement.claims.required if name in claims.actors},
                "PACK",
            )
            if not wait.until(lambda: actors.wait(1)):
                return
            remove_placement_group(actors)
            self._until_seen(actors, present=False)
            placement = self._place_actors(claims)
        self._hints = {
            name: placement.nodes[name].node_id for name in claims.actors if name in placement.nodes
        }
        say(placement.text)

    def spawn(self, name: str, role: type, *args: Any, need: Need) -> Handle:
        """See Engine.spawn. A private Ray runs every role at once, so CPUs are claimed on clusters only.

        A role that room was reserved for claims that.
        """
        need = self._reserved.get(name, need)
        options: dict[str, Any] = {
            "num_cpus": 0 if self._private else need.cpus,
            "num_gpus": need.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if need.memory_bytes:
            options["memory"] = need.memory_bytes
        if name in self._slots:
            group, index = self._slots[name]
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, index)
        elif name in self._hints:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                self._hints[name], soft=True, _spill_on_unavailable=True
            )
        handle = Handle(name, ray.remote(role).options(**options).remote(*args))
        self._handles.append(handle)
        return handle

    def machine_of(self, handle: Handle) -> str:
        """See Engine.machine_of."""
        if self._private:
            return ""
        state = ray_state.actors(handle.target._actor_id.hex())
        return self._machine(state["Address"]["NodeID"])

    def machines_leaving(self) -> frozenset[str]:
        """See Engine.machines_leaving. Ray tells of it only when it is asked."""
        if self._private:
            return frozenset()
        return frozenset(self._machine(node_id) for node_id in ray_state.state.get_draining_nodes())

    def kill(self, handle: Handle) -> None:
        """See Engine.kill. What replaces it is not bound to the same machine, which may be gone."""
        self._hints.pop(handle.name, None)
        ray.kill(handle.target, no_restart=True)

    def close(self) -> None:
        """Ends every role and, where Ray is private, Ray and its folder."""
        try:
            if ray.is_initialized():
                for handle in self._handles:
                    self.kill(handle)
                self._handles.clear()
                for group in {group.id: group for group, _ in self._slots.values()}.values():
                    remove_placement_group(group)
                self._slots.clear()
                ray.shutdown()
        finally:
            self._closing.close()
            if self._temp_dir is not None:
                shutil.rmtree(self._temp_dir, ignore_errors=True)

    def _machine(self, node_id: str) -> str:
        return "" if node_id == ray.get_runtime_context().get_node_id() else str(node_id)

    def _group(self, needs: Mapping[str, Need], strategy: str) -> PlacementGroup:
        return placement_group([_bundle(need) for need in needs.values()], strategy=strategy)

    def _place_actors(self, claims: Claims) -> Placement:
        settled = {}
        for name, (group, index) in self._slots.items():
            self._until_seen(group, present=True)
            settled[name] = placement_group_table(group)["bundles_to_node_id"][index]
        return place(claims, self.nodes(), settled)

    def _until_seen(self, group: PlacementGroup, *, present: bool) -> None:
        """Waits until what machines say is free reflects the group: they report a moment later."""
        name = f"bundle_group_{group.id.hex()}"
        deadline = time.monotonic() + _VIEW_SECONDS
        while time.monotonic() < deadline:
            nodes = ray_state.available_resources_per_node().values()
            if any(name in resources for resources in nodes) is present:
                return
            time.sleep(0.02)


class _Wait:
    """Waiting for room with words: once when it begins, and whenever the cluster has changed."""

    def __init__(
        self,
        claims: Claims,
        nodes: Callable[[], tuple[Node, ...]],
        deadline: float,
        seconds: float,
        say: Callable[[str], None],
        stopped: Callable[[], object],
    ) -> None:
        self._claims = claims
        self._nodes = nodes
        self._deadline = deadline
        self._seconds = seconds
        self._say = say
        self._stopped = stopped
        self._said = ""

    def until(self, ready: Callable[[], bool]) -> bool:
        """True once ready(), False once stopped. Raises TimeoutError at the deadline."""
        while not ready():
            if self._stopped():
                return False
            needed = self._claims.required
            found = room(self._nodes())
            text = f"the run needs {total(needed.values())} for {summary(needed)}; the cluster has {found}"
            if text != self._said:
                self._said = text
                self._say(f"waiting up to {self._seconds:g} s for room: {text}")
            if time.monotonic() >= self._deadline:
                raise TimeoutError(
                    f"{text}. Waited run.wait_for_cluster_seconds = {self._seconds:g}: add machines, lower "
                    "actors.num_actors or replay.num_shards, or set actors.min_actors to begin with fewer"
                )
        return True


def _bundle(need: Need) -> dict[str, float]:
    claimed = {"CPU": need.cpus, "GPU": need.gpus, "memory": float(need.memory_bytes)}
    return {name: amount for name, amount in claimed.items() if amount}


@contextmanager
def private_environment() -> Iterator[None]:
    """What a private Ray reads from the environment; as it was before, afterwards."""
    values = {
        **_LEAN,
        **SINGLE_THREADED,
        # Where Ray believes that it cannot span machines it binds to the loopback interface, else to all.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    before = {name: os.environ.get(name) for name in values}
    spans_machines = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(values)
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_environment_again()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = spans_machines
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_environment_again()


def _read_environment_again() -> None:
    """This process loaded Ray before the environment changed."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _require_listener(address: str) -> None:
    """Raises OSError if nobody listens at host:port: Ray itself would retry for minutes."""
    if address.startswith(("http://", "https://")):
        raise OSError(
            "that is where jobs are submitted: use ray job submit, or give the head's host:port, "
            "or --runtime local"
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
