"""Calls from one process to roles in other processes of the same machine.

Owns the caller's side: calls in flight and their results; must not import ray, torch or gymnasium.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from cluster.engines.engine import ArgTs, EngineError, Handle, Ref, RoleDied, RoleError, RoleT, ValueT
from cluster.engines.lines import Lines
from cluster.engines.shared_memory import MemoryPool
from cluster.engines.wire import DescriptorsLost, Line, Message, Packed, Unsendable, pack, unpack

CALLS = "calls"
"""Stands for the calls of a process where they are passed to a role, which gets its own."""


class Pending(Ref[Any]):
    """The result of a call or of a put. packed, error: one of them is set as soon as it is known."""

    __slots__ = ("_known", "error", "packed", "role")

    def __init__(self, role: str, known: Known) -> None:
        """known: it joins these results once it is known."""
        self.role = role
        self._known = known
        self.packed: Packed | None = None
        self.error: EngineError | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the result is known."""
        return self.packed is not None or self.error is not None

    def succeed(self, packed: Packed) -> None:
        """The call has returned this."""
        self.packed = packed
        self._known[self] = None

    def fail(self, error: EngineError) -> None:
        """The call has returned nothing."""
        self.error = error
        self._known[self] = None


Known = WeakKeyDictionary[Pending, None]
"""Results that are known and that somebody still holds, the oldest first."""


class Connection:
    """A process's connection to one role: the target of its handle.

    line: the caller's end. waiting: calls that take results that are not known yet, and those after them.
    """

    def __init__(self, role: str, end: socket.socket) -> None:
        self.role = role
        self.line = Line(end)
        self.waiting: deque[tuple[str, list[Packed | Pending], list[Pending]]] = deque()
        self._in_flight: dict[int, list[Pending]] = {}
        self._calls = 0
        self._lost: EngineError | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the role is gone."""
        return self._lost is not None

    def next_call(self, results: list[Pending]) -> int:
        """The number of the next call, whose reply sets the results."""
        self._calls += 1
        self._in_flight[self._calls] = results
        return self._calls

    def take(self, message: Message) -> None:
        """Sets the results of the call that this message replies to."""
        number, error = message.head
        results = self._in_flight.pop(number)
        if error is not None:
            fail(results, error)
            return
        for result, value in zip(results, message.values, strict=True):
            result.succeed(value)

    def miss(self, error: DescriptorsLost) -> None:
        """Fails the call whose result this process has no room for."""
        number, _ = error.head
        fail(
            self._in_flight.pop(number), RoleError(self.role, f"its result cannot be taken: {error.strerror}")
        )

    def lose(self) -> None:
        """Fails every call: the role's process has ended."""
        self._lost = error = self.death()
        while self._in_flight:
            fail(self._in_flight.popitem()[1], error)
        while self.waiting:
            fail(self.waiting.popleft()[2], error)

    def refuse(self, results: list[Pending]) -> None:
        """Fails a call to a role that is gone."""
        assert self._lost is not None
        fail(results, self._lost)

    def death(self) -> EngineError:
        """The error of calls to a role whose process has ended."""
        return RoleDied(self.role, "its process has ended")


def fail(results: Sequence[Pending], error: EngineError) -> None:
    """Makes the error the result of each."""
    for result in results:
        result.fail(error)


class ProcessCalls:
    """Calls over connections that `lines` watches; for one thread. memories: of what this process sends."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.memories = MemoryPool()
        self._waiting: set[Connection] = set()
        self._known: Known = WeakKeyDictionary()

    @property
    def host(self) -> str:
        """See Calls.host: all roles are on this machine."""
        return "127.0.0.1"

    def call(
        self,
        handle: Handle[RoleT],
        method: Callable[[RoleT, *ArgTs], object],
        *args: *ArgTs,
        returns: int = 1,
    ) -> tuple[Ref[Any], ...]:
        """See Calls.call. Raises TypeError if an argument cannot be pickled."""
        connection: Connection = handle.target
        try:
            packed = [
                arg if isinstance(arg, Pending) else pack(arg, self.connect, self.memories) for arg in args
            ]
        except Unsendable as error:
            raise TypeError(f"{method.__name__} of {handle.name}: {error}") from error.__cause__
        results = [Pending(handle.name, self._known) for _ in range(returns)]
        connection.waiting.append((method.__name__, packed, results))
        self._send_ready(connection)
        return tuple(results)

    def wait(self, refs: Collection[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        """See Calls.wait."""
        deadline = time.monotonic() + timeout_seconds
        self._turn(0.0)
        while not (ready := self._known_of(refs)):
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0.0:
                break
            self._turn(left_seconds)
        return ready

    def get(self, ref: Ref[ValueT]) -> ValueT:
        """See Calls.get; arrays come back read-only, large ones without a copy."""
        pending = _pending(ref)
        while not pending.is_ready:
            self._turn(None)
        if pending.error is not None:
            raise pending.error
        assert pending.packed is not None
        value: ValueT = unpack(pending.packed, self.adopt)
        return value

    def put(self, value: ValueT) -> Ref[ValueT]:
        """See Calls.put."""
        put = Pending("a value", self._known)
        put.succeed(pack(value, self.connect, self.memories))
        return put

    def _known_of(self, refs: Collection[Ref[Any]]) -> list[Ref[Any]]:
        """Those of the refs that are known: of a thousand calls in flight few are, so these are looked at."""
        return [ref for ref in self._known if ref in refs]

    def _turn(self, timeout_seconds: float | None) -> None:
        self._lines.turn(timeout_seconds)
        for connection in list(self._waiting):
            self._send_ready(connection)

    def _send_ready(self, connection: Connection) -> None:
        """Sends the calls whose arguments are known, in order."""
        waiting = connection.waiting
        while waiting:
            method, args, results = waiting[0]
            if any(isinstance(arg, Pending) and not arg.is_ready for arg in args):
                self._waiting.add(connection)
                return
            waiting.popleft()
            self._send(connection, method, args, results)
        self._waiting.discard(connection)

    def _send(
        self, connection: Connection, method: str, args: list[Packed | Pending], results: list[Pending]
    ) -> None:
        values: list[Packed] = []
        for arg in args:
            if isinstance(arg, Packed):
                values.append(arg)
            elif arg.packed is not None:
                values.append(arg.packed)
            elif arg.error is not None:
                fail(results, arg.error)
                return
        if connection.is_lost:
            connection.refuse(results)
        else:
            number = connection.next_call(results)
            self._lines.send(connection, (number, method, len(results)), values)

    def connect(self, obj: Any) -> tuple[str, socket.socket | None] | None:
        """What travels instead of an object; see wire.Connect."""
        if isinstance(obj, Connection | ProcessCalls):
            raise TypeError(f"only the engine passes a {type(obj).__name__} on")
        return None

    def adopt(self, name: str, end: socket.socket | None) -> Any:
        """The object that stands here for what another process passed on; see wire.Adopt."""
        if end is None:
            return self
        connection = Connection(name, end)
        self._lines.watch(connection)
        return connection


def _pending(ref: Ref[Any]) -> Pending:
    if not isinstance(ref, Pending):
        raise TypeError(f"{ref!r} is no Ref of this engine")
    return ref
