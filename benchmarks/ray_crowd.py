"""A crowd over Ray: one asynchronous Ray actor that speaks for all actors of a run.

Owns that Ray actor, and how the engine spawns actors in it. The coordinator submits as many calls to Ray as
that many actors get, and holds as many references; only Ray's own work for a thousand processes is missing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import ray

from actors.core import RolloutReport
from benchmarks.crowd import Heard, RecordedActor, Recording, chunk_seconds_of
from cluster.engines.engine import ArgTs, Handle, Need, Ref, RoleT
from cluster.engines.ray_engine import RayEngine
from cluster.runtime.roles import ActorRole

_MOST_CALLS = 10_000
_RETRY_SECONDS = 0.002


class Turns:
    """Lets the calls of one actor through by their places: an asynchronous Ray actor mixes them up."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Event] = {}

    @asynccontextmanager
    async def turn(self, place: int) -> AsyncIterator[None]:
        """Begins once all calls before this one have ended."""
        if place != self._next:
            await self._waiting.setdefault(place, asyncio.Event()).wait()
        try:
            yield
        finally:
            self._next += 1
            if (event := self._waiting.pop(self._next, None)) is not None:
                event.set()


class _RayCrowd:
    """The Ray actor."""

    def __init__(self, recording: Recording, chunk_seconds: float) -> None:
        self._recording = recording
        self._chunk_seconds = chunk_seconds
        self._actors: dict[int, RecordedActor] = {}
        self._turns: defaultdict[int, Turns] = defaultdict(Turns)
        self._heard = Heard()
        self._rng = np.random.default_rng(0)

    async def call(self, number: int, place: int, method: str, *args: Any) -> Any:
        """The call of this place to an actor; the first, "", begins it with the arguments of ActorRole."""
        if method == "rollout":
            self._heard.credit(number)
        async with self._turns[number].turn(place):
            if method == "rollout":
                return await self._act(number, *args)
            if method:
                return getattr(self._actors[number], method)(*args)
            self._actors[number] = RecordedActor(self._recording, *args)
            return None

    async def _act(self, number: int, _: int, version: int, weights: object, __: int) -> RolloutReport:
        actor = self._actors[number]
        idle = self._heard.begin(number, None if weights is None else version)
        began = time.monotonic()
        seconds = chunk_seconds_of(actor, self._chunk_seconds, self._rng)
        await asyncio.sleep(seconds)
        late = time.monotonic() - began - seconds
        while not actor.may_push():
            await asyncio.sleep(_RETRY_SECONDS)
        report = actor.finish(version, idle, time.monotonic() - began)
        self._heard.end(number, idle, late)
        return report

    async def pid(self) -> int:
        """Its process."""
        return os.getpid()

    async def heard(self) -> dict[str, np.ndarray]:
        """See Heard.arrays."""
        return self._heard.arrays()


class CrowdRayEngine(RayEngine):
    """A private Ray whose actors live in a crowd."""

    def __init__(self, recording: Recording, chunk_seconds: float) -> None:
        super().__init__(private=True)
        self._recording, self._chunk_seconds = recording, chunk_seconds
        self._crowd: Any = None
        self._calls: Counter[int] = Counter()

    def start(self) -> None:
        """See RayEngine.start."""
        super().start()
        remote = ray.remote(_RayCrowd).options(max_concurrency=_MOST_CALLS, num_cpus=0)
        self._crowd = remote.remote(self._recording, self._chunk_seconds)

    @property
    def crowd_pid(self) -> int:
        """The crowd's process."""
        pid: int = ray.get(self._crowd.pid.remote())
        return pid

    def heard(self) -> dict[str, np.ndarray]:
        """See Heard.arrays."""
        arrays: dict[str, np.ndarray] = ray.get(self._crowd.heard.remote())
        return arrays

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """See Engine.spawn."""
        made: object = role
        if made is not ActorRole:
            return super().spawn(name, role, *args, need=need)
        handle: Handle[RoleT] = Handle(name, len(self._calls))
        self._send(handle.target, "", args)
        return handle

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
        return (self._send(handle.target, method.__name__, args),)

    def kill(self, handle: Handle[Any]) -> None:
        """See Engine.kill."""
        if not isinstance(handle.target, int):
            super().kill(handle)

    def _send(self, number: int, method: str, args: tuple[Any, ...]) -> Any:
        place, self._calls[number] = self._calls[number], self._calls[number] + 1
        return self._crowd.call.options(num_returns=1).remote(number, place, method, *args)
