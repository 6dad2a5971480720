"""The Ray engine: runs every role as a Ray actor, on this machine or on a cluster.

Owns starting and ending Ray and translating its errors; must not import torch or gymnasium.
"""

import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from typing import Any

import ray
from ray import exceptions as ray_exceptions

from cluster.engines.engine import (
    ArgTs,
    EngineError,
    Handle,
    Need,
    ObjectLost,
    Ref,
    RoleDied,
    RoleError,
    RoleOutOfMemory,
    RoleT,
    ValueT,
)
from cluster.engines.machine import cluster_address
from cluster.engines.own_code import entry_hook
from cluster.engines.placement import Claims, Node
from cluster.engines.ray_placement import Reservation, free_nodes
from cluster.engines.ray_private import (
    actor_id,
    draining_nodes,
    kill_servers_at_shutdown,
    node_of_actor,
    own_servers,
    private_environment,
    question_to_gcs,
    quiet_driver,
    servers_here,
    start_on_loopback,
    terminate,
)
from cluster.engines.ray_servers import Polled, ServerWatch, end_all, with_descendants
from cluster.engines.signals import run_shielded
from cluster.engines.temp_folder import temp_folder

_CONNECT_SECONDS = 5.0


class RayCalls:
    """Calls through Ray. Every role that calls others gets such an object as an argument."""

    def __init__(self) -> None:
        self._role_names: dict[str, str] = {}

    @property
    def host(self) -> str:
        """See Calls.host."""
        address: str = ray.util.get_node_ip_address()
        return address

    def call(
        self,
        handle: Handle[RoleT],
        method: Callable[[RoleT, *ArgTs], object],
        *args: *ArgTs,
        returns: int = 1,
    ) -> tuple[Ref[Any], ...]:
        """Submits the actor call; see Calls.call."""
        self._role_names[actor_id(handle.target)] = handle.name
        refs = getattr(handle.target, method.__name__).options(num_returns=returns).remote(*args)
        return (refs,) if returns == 1 else tuple(refs)

    def wait(self, refs: Collection[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        """See Calls.wait."""
        pending = list(refs)
        if not pending:
            time.sleep(timeout_seconds)  # ray.wait would return at once, and the caller would spin
            return []
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout_seconds, fetch_local=False)
        if ready and len(pending) > 1:
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
        return list(ready)

    def get(self, ref: Ref[ValueT]) -> ValueT:
        """See Calls.get; arrays come back read-only and without a copy."""
        try:
            value: ValueT = ray.get(ref)
            return value
        except ray_exceptions.RayTaskError as error:
            # A role that failed because another one had failed raises the error of the other one.
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

    def put(self, value: ValueT) -> Ref[ValueT]:
        """See Calls.put."""
        ref: Ref[ValueT] = ray.put(value)
        return ref

    def _name(self, ref: Any) -> str:
        return self._role_names.get(ref.task_id().actor_id().hex(), "a role")


class RayInUse(RuntimeError):  # noqa: N818 - a state of the process
    """This process uses a Ray already, which a run would reconfigure and shut down."""


class RayEngine(RayCalls):
    """An engine over a private Ray on this machine, or over the cluster of RAY_ADDRESS."""

    deterministic = False
    own_processes = True

    def __init__(self, *, private: bool) -> None:
        super().__init__()
        self._private = private
        self._handles: list[Handle[Any]] = []
        self._reservation = Reservation()
        self._closing = ExitStack()
        self._released = threading.Event()
        self._watch: ServerWatch | None = None
        self._draining: Polled[frozenset[str]] | None = None

    def start(self) -> None:
        """Starts or joins Ray.

        A private Ray listens on the loopback interface only. It accepts only calls that carry its token,
        which is new each time and unreadable for other users of the machine. Its processes block the signals
        that the driver handles.

        Raises:
            RayInUse: this process uses a Ray already, which stays as it is.
            OSError: RAY_ADDRESS cannot be reached, or (ConnectionError) the cluster refuses this user.
        """
        if ray.is_initialized():
            raise RayInUse(
                "this process uses a Ray of its own (ray.init was called here, or it is a task): call "
                "ray.shutdown() first, start qfleet in a process of its own, or use the runtime local"
            )
        self._closing.enter_context(quiet_driver())
        own_code = {"worker_process_setup_hook": entry_hook()}
        if self._private:
            # Ray lets everybody into the folder that it is given, so it gets one within ours.
            folder = self._closing.enter_context(temp_folder()) / "ray"
            self._closing.enter_context(private_environment())
            run_shielded(partial(start_on_loopback, folder, own_code), self._released)
            kill_servers_at_shutdown()
        else:
            _require_listener(cluster_address())
            _join(own_code)
            self._draining = Polled(draining_nodes, frozenset[str]())
            self._closing.callback(self._draining.close)
        servers = servers_here()
        self._watch = ServerWatch(servers, None if "gcs_server" in servers else question_to_gcs())
        self._closing.callback(self._watch.close)

    def wait(self, refs: Collection[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        """See Calls.wait. Raises EngineDied once if a server of Ray is dead."""
        if self._watch is not None:
            self._watch.look()
        return super().wait(refs, timeout_seconds)

    def get(self, ref: Ref[ValueT]) -> ValueT:
        """See Calls.get. Raises EngineDied once if a server of Ray is dead."""
        if self._watch is not None:
            self._watch.look()
        return super().get(ref)

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
        return free_nodes()

    def reserve(
        self,
        claims: Claims,
        *,
        wait_seconds: float,
        say: Callable[[str], None],
        stopped: Callable[[], object],
    ) -> None:
        """Reserves resources for the core of a run on a cluster, and waits until the required actors fit.

        The core keeps its resources when one of its roles dies, so that no waiting actor takes them.
        An autoscaler sees the claims that the run waits for.

        Args:
            say: called with a text about the wait, and at the end with the placement.
            stopped: once it returns true, reserve returns early.

        Raises:
            TimeoutError: naming what is missing, after wait_seconds.
        """
        if self._private:
            return
        self._reservation.make(claims, wait_seconds=wait_seconds, say=say, stopped=stopped)

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """See Engine.spawn. A role with reserved room claims that instead of `need`.

        On a private Ray roles claim no CPUs, so that all of them start on any number of cores.
        """
        options = self._reservation.options(name, need)
        if self._private:
            options["num_cpus"] = 0
        # The supervisor restarts roles, so Ray's own restarts and retries are off.
        remote = ray.remote(role).options(max_restarts=0, max_task_retries=0, **options)
        handle: Handle[RoleT] = Handle(name, remote.remote(*args))
        self._handles.append(handle)
        return handle

    def machine_of(self, handle: Handle[Any]) -> str:
        """See Engine.machine_of."""
        return "" if self._private else _machine(node_of_actor(handle.target))

    def machines_leaving(self) -> frozenset[str]:
        """See Engine.machines_leaving. Ray sends no notices, and a dead GCS would not answer for a minute."""
        return frozenset() if self._draining is None else frozenset(map(_machine, self._draining.newest))

    def kill(self, handle: Handle[Any]) -> None:
        """See Engine.kill. The role's replacement may start on any machine: this one may be gone."""
        self._reservation.forget_node(handle.name)
        ray.kill(handle.target, no_restart=True)

    def end_roles(self) -> None:
        """See Engine.end_roles."""
        while self._handles:
            self.kill(self._handles.pop())

    def close(self) -> None:
        """Ends every role and, where Ray is private, Ray and its folder."""
        family = with_descendants(own_servers())
        try:
            if ray.is_initialized() and self._watch is not None:
                if self._watch.said:
                    # Calls to a dead server would wait for it; a role's process still takes calls.
                    terminate(handle.target for handle in self._handles)
                    end_all(family)
                else:
                    self.end_roles()
                    self._reservation.release()
                ray.shutdown()
                end_all(family)
        finally:
            self._watch = None
            self._released.set()
            self._closing.close()


def _join(runtime_env: dict[str, Any]) -> None:
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="error", runtime_env=runtime_env)
    except (ray_exceptions.AuthenticationError, RuntimeError) as error:
        raise ConnectionError(str(error).strip().splitlines()[0]) from error


def _machine(node_id: str) -> str:
    """The machine of a node, as Engine.machine_of names it."""
    return "" if node_id == ray.get_runtime_context().get_node_id() else node_id


def _require_listener(address: str) -> None:
    """Raises OSError if nothing listens at host:port, for which Ray itself would retry for minutes."""
    if address.startswith(("http://", "https://")):
        raise OSError(
            "jobs are submitted at this address: use ray job submit, or give the head's host:port, "
            "or --runtime local"
        )
    if address.startswith("ray://"):
        raise OSError(
            "this is an address for Ray clients, through which a run would be too slow: on a machine of the "
            "cluster give the head's host:port (6379 by default), elsewhere use ray job submit"
        )
    if address == "local":
        raise OSError("this names no cluster: unset it, or use --runtime local")
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
