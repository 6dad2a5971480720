"""A crowd over Ray: one asynchronous Ray actor that speaks for all actors of a run.

Owns that Ray actor, and how the engine spawns actors in it. The coordinator submits as many calls to Ray as
that many actors get, and holds as many references; only Ray's own work for a thousand processes is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from benchmarks.crowd import Heard, RecordedActor, Recording, chunk_seconds_of
from cluster.engines.engine import ArgTs, Handle, Need, RoleT
from cluster.engines.ray_engine import RayEngine
from cluster.engines.ref import Ref
from cluster.runtime.roles import ActorRole

_MOST_CALLS = 10_000
_RETRY_SECONDS = 0.002


class _RayCrowd:
    """The Ray actor."""

    def __init__(self, recording: Recording, chunk_seconds: float) -> None:
        self._recording = recording
        self._chunk_seconds = chunk_seconds
        self._actors: dict[int, RecordedActor] = {}
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._heard = Heard()
        self._rng = np.random.default_rng(0)

    async def begin(self, number: int, *args: Any) -> None:
        """An actor begins; the arguments are those of ActorRole."""
        self._actors[number] = RecordedActor(self._recording, *args)

    async def call(self, number: int, method: str, *args: Any) -> Any:
        """A call to an actor; each handles its own in order."""
        if method == "rollout":
            self._heard.credit(number)
        async with self._turns[number]:
            actor = self._actors[number]
            if method != "rollout":
                return getattr(actor, method)(*args)
            _, version, weights, _ = args
            idle = self._heard.begin(number, version if weights is not None else None)
            began = time.monotonic()
            seconds = chunk_seconds_of(actor, self._chunk_seconds, self._rng)
            await asyncio.sleep(seconds)
            late = time.monotonic() - began - seconds
            while not actor.may_push():
                await asyncio.sleep(_RETRY_SECONDS)
            report = actor.finish(version, idle, time.monotonic() - began)
            self._heard.end(number, idle, late)
            return report

    async def heard(self) -> dict[str, np.ndarray]:
        """What was measured."""
        return self._heard.arrays()


class CrowdRayEngine(RayEngine):
    """A private Ray whose actors live in a crowd."""

    def __init__(self, recording: Recording, chunk_seconds: float) -> None:
        super().__init__(private=True)
        self._recording, self._chunk_seconds = recording, chunk_seconds
        self._crowd: Any = None
        self._members = 0

    def start(self) -> None:
        """See RayEngine.start."""
        super().start()
        remote = ray.remote(_RayCrowd).options(max_concurrency=_MOST_CALLS, num_cpus=0)
        self._crowd = remote.remote(self._recording, self._chunk_seconds)

    @property
    def crowd_pid(self) -> int:
        """The crowd's process."""
        pid: int = ray.get(self._crowd.__ray_call__.remote(lambda _: __import__("os").getpid()))
        return pid

    def heard(self) -> dict[str, np.ndarray]:
        """See Heard.arrays."""
        arrays: dict[str, np.ndarray] = ray.get(self._crowd.heard.remote())
        return arrays

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """See Engine.spawn."""
        if role is not ActorRole:
            return super().spawn(name, role, *args, need=need)
        self._members += 1
        self._crowd.begin.remote(self._members, *args)
        return Handle(name, self._members)

    def call(
        self,
        handle: Handle[RoleT],
        method: Callable[[RoleT, *ArgTs], object],
        *args: *ArgTs,
        returns: int = 1,
    ) -> tuple[Ref[Any], ...]:
        """See Calls.call."""
        if not isinstance(handle.target, int):
            return super().call(handle, method, *args, returns=returns)
        return (self._crowd.call.remote(handle.target, method.__name__, *args),)

    def kill(self, handle: Handle[Any]) -> None:
        """See Engine.kill."""
        if not isinstance(handle.target, int):
            super().kill(handle)
