"""A crowd over the process engine: one process with a connection of its own for each actor.

Owns that process, and how the engine spawns actors in it.
"""

from __future__ import annotations

import dataclasses
import heapq
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.crowd import Heard, RecordedActor, Recording, chunk_seconds_of
from cluster.engines.engine import ArgTs, Handle, Need, RoleT
from cluster.engines.fork_server import Kill, Spawn
from cluster.engines.lines import Lines
from cluster.engines.own_code import OWN_ROOT
from cluster.engines.process_calls import ProcessCalls
from cluster.engines.process_engine import ProcessEngine
from cluster.engines.shared_memory import MemoryPool
from cluster.engines.wire import DescriptorsLost, Line, Message, pack, unpack
from cluster.runtime.preload import fork_servers
from cluster.runtime.roles import ActorRole

_RETRY_SECONDS = 0.002


class _Member:
    """The crowd's end of the coordinator's connection to one actor."""

    def __init__(self, number: int, end: socket.socket, crowd: _Crowd) -> None:
        self.number = number
        self.line = Line(end)
        self._crowd = crowd
        self.actor: Any = None
        self.inbox: deque[tuple[tuple[int, str, int], Any]] = deque()
        self.is_busy = False

    def take(self, message: Message) -> None:
        """Keeps a call for when its turn comes."""
        self.inbox.append((message.head, message.values))
        if message.head[1] == "rollout":
            self._crowd.heard.credit(self.number)
        self._crowd.ready.append(self)

    def miss(self, error: DescriptorsLost) -> None:
        raise error

    def lose(self) -> None:
        """Nothing: the coordinator has ended it."""


@dataclass(order=True, frozen=True)
class _Chunk:
    """A chunk in work. order: breaks ties."""

    ends_at: float
    order: int
    member: _Member = dataclasses.field(compare=False)
    call: int = dataclasses.field(compare=False)
    version: int = dataclasses.field(compare=False)
    began_at: float = dataclasses.field(compare=False)
    idle_seconds: float = dataclasses.field(compare=False)


class _Crowd:
    """The process of the crowd."""

    def __init__(self, line: Line, into: Path) -> None:
        """into: the file for what was noted."""
        self.line = line
        self.heard = Heard()
        self.ready: deque[_Member] = deque()
        self._into = into
        self._lines = Lines()
        self._lines.watch(self)
        self._calls = ProcessCalls(self._lines)
        self._members: dict[int, _Member] = {}
        self._chunks: list[_Chunk] = []
        self._order = count()
        self._rng = np.random.default_rng(0)
        self._is_over = False

    def take(self, message: Message) -> None:
        """Takes the recording, and starts and ends actors."""
        if isinstance(message.head, Spawn):
            (end,), (packed,) = message.sockets, message.values
            member = self._members[message.head.number] = _Member(message.head.number, end, self)
            self._lines.watch(member)
            _, *args = unpack(packed, self._calls.adopt)
            member.actor = RecordedActor(self._recording, *args)
        elif isinstance(message.head, Kill):
            self._lines.end(self._members.pop(message.head.number))
        else:
            self._chunk_seconds = message.head
            self._recording: Recording = unpack(message.values[0], self._calls.adopt)

    def miss(self, error: DescriptorsLost) -> None:
        raise error

    def lose(self) -> None:
        self._is_over = True

    def run(self) -> None:
        """Answers calls until the engine ends; then writes what was noted."""
        while not self._is_over:
            wait = max(0.0, self._chunks[0].ends_at - time.monotonic()) if self._chunks else None
            self._lines.turn(0.0 if self.ready else wait)
            while self.ready:
                self._work(self.ready.popleft())
            now = time.monotonic()
            while self._chunks and self._chunks[0].ends_at <= now:
                self._end(heapq.heappop(self._chunks))
        heard: dict[str, Any] = {**self.heard.arrays()}
        np.savez(self._into, **heard)

    def _work(self, member: _Member) -> None:
        """Handles the member's calls in order, up to a chunk."""
        while member.inbox and not member.is_busy:
            (number, method, _), given = member.inbox.popleft()
            values = [unpack(arg, self._calls.adopt) for arg in given]
            if method == "rollout":
                self._begin(member, number, *values)
            else:
                self._answer(member, number, getattr(member.actor, method)(*values))

    def _begin(self, member: _Member, call: int, _: int, version: int, weights: object, __: int) -> None:
        idle = self.heard.begin(member.number, None if weights is None else version)
        now, member.is_busy = time.monotonic(), True
        ends_at = now + chunk_seconds_of(member.actor, self._chunk_seconds, self._rng)
        heapq.heappush(self._chunks, _Chunk(ends_at, next(self._order), member, call, version, now, idle))

    def _end(self, chunk: _Chunk) -> None:
        member, now = chunk.member, time.monotonic()
        if not member.actor.may_push():
            heapq.heappush(self._chunks, dataclasses.replace(chunk, ends_at=now + _RETRY_SECONDS))
            return
        report = member.actor.finish(chunk.version, chunk.idle_seconds, now - chunk.began_at)
        self._answer(member, chunk.call, report)
        member.is_busy = False
        self.heard.end(member.number, chunk.idle_seconds, now - chunk.ends_at)
        self.ready.append(member)

    def _answer(self, member: _Member, call: int, value: object) -> None:
        self._lines.send(member, (call, None), [pack(value, self._calls.connect, self._calls.memories)])


class Crowd:
    """The process of the crowd, as the engine sees it: like a fork server, but it keeps the actors itself."""

    def __init__(self, recording: Recording, chunk_seconds: float, into: Path) -> None:
        """into: the file that it writes once the engine has closed: Heard.arrays."""
        own, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.process_crowd", str(theirs.fileno()), str(into)],
                pass_fds=[theirs.fileno()],
                cwd=OWN_ROOT,
            )
        self.line = Line(own)
        self.line.send(chunk_seconds, [pack(recording, lambda _: None, MemoryPool())])

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def take(self, message: Message) -> None:
        """Nothing comes from the crowd."""

    def miss(self, error: DescriptorsLost) -> None:
        """Never happens."""

    def lose(self) -> None:
        """Does nothing: the connections to its actors have ended, too."""

    def status_of(self, number: int, wait_seconds: float) -> int | None:
        """Not known: an actor of the crowd has no process."""
        return None


class CrowdProcessEngine(ProcessEngine):
    """A process engine whose actors live in a crowd."""

    def __init__(self, recording: Recording, chunk_seconds: float, into: Path) -> None:
        """into: see Crowd."""
        super().__init__(fork_servers())
        self._crowd = Crowd(recording, chunk_seconds, into)
        self._into = into

    @property
    def crowd_pid(self) -> int:
        """The crowd's process."""
        return self._crowd.process.pid

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """See Engine.spawn."""
        made: object = role
        if made is not ActorRole:
            return super().spawn(name, role, *args, need=need)
        forking = self._servers
        self._servers = self  # type: ignore[assignment]
        try:
            return super().spawn(name, role, *args, need=need)
        finally:
            self._servers = forking

    def server(self, *, torch: bool) -> Crowd:
        """Where an actor begins."""
        return self._crowd

    def heard(self) -> dict[str, np.ndarray]:
        """See Heard.arrays; closes the engine."""
        self.close()
        self._crowd.process.wait(60.0)
        with np.load(self._into) as said:
            return {name: said[name] for name in said.files}


def serve(descriptor: str, into: str) -> None:
    """The crowd's own process."""
    _Crowd(Line(socket.socket(fileno=int(descriptor))), Path(into)).run()


if __name__ == "__main__":
    serve(*sys.argv[1:])
