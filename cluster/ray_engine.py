"""The Ray engine: every role an actor process, on this machine or on a cluster.

Owns starting and ending Ray and translating its errors; must not import torch or gymnasium.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_exceptions
from ray._private import worker as ray_worker

from cluster.engine import EngineError, Handle, Need, ObjectLost, Ref, RoleDied, RoleError
from cluster.threads import SINGLE_THREADED

# Without these a local Ray starts 21 processes and 757 MB instead of 8 and 461 MB. Authentication is
# set on purpose: a plain local ray.init() writes a token that later locks other tools out.
_LEAN = {
    "RAY_AUTH_MODE": "disabled",
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
        # Unix socket paths may have 107 bytes, of which Ray needs most: so not in the run directory.
        self._temp_dir = Path(tempfile.mkdtemp(prefix="qf-")) if private else None

    def start(self) -> None:
        """Starts or joins Ray. Raises OSError (ConnectionError) where RAY_ADDRESS leads nowhere."""
        # Deaths are reported by the coordinator, in one line; Ray would print a paragraph beside it.
        ray_worker._worker_logs_enabled = False
        if not self._private:
            _require_listener(os.environ.get("RAY_ADDRESS", ""))
            ray.init(address="auto", log_to_driver=False, logging_level="error")
            return
        os.environ.update(_LEAN)
        os.environ.update(SINGLE_THREADED)
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

    def spawn(self, name: str, role: type, *args: Any, need: Need) -> Handle:
        """See Engine.spawn. A private Ray runs every role at once, so CPUs are claimed on clusters only."""
        options = {
            "num_cpus": 0 if self._private else need.cpus,
            "num_gpus": need.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        handle = Handle(name, ray.remote(role).options(**options).remote(*args))
        self._handles.append(handle)
        return handle

    def kill(self, handle: Handle) -> None:
        """See Engine.kill."""
        ray.kill(handle.target, no_restart=True)

    def close(self) -> None:
        """Ends every role and, where Ray is private, Ray and its folder."""
        try:
            if ray.is_initialized():
                for handle in self._handles:
                    self.kill(handle)
                self._handles.clear()
                ray.shutdown()
        finally:
            if self._temp_dir is not None:
                shutil.rmtree(self._temp_dir, ignore_errors=True)


def _require_listener(address: str) -> None:
    """Raises OSError if nobody listens at host:port: Ray itself would retry for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
