"""The engine: one interface to roles in a single process and on a Ray cluster.

Owns the interface and its errors; must not import ray.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from cluster.engines.placement import Claims

RoleT = TypeVar("RoleT")
ValueT = TypeVar("ValueT")
ArgTs = TypeVarTuple("ArgTs")


class Ref(Generic[ValueT]):
    """A reference to a value that a call will return; hashable. Each engine has its own kind."""


@dataclass(frozen=True)
class Need:
    """Resources that a role claims from a runtime that schedules by them. Memory is reserved, not limited.

    torch: whether the role computes with torch; a process that has loaded it can then be ready.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    torch: bool = False


@dataclass(frozen=True)
class Handle(Generic[RoleT]):
    """A spawned role: `name` is what messages call it ("actor 3"), `target` belongs to the engine."""

    name: str
    target: Any


class EngineError(Exception):
    """A call that returned no value. role: the name of the role that was called."""

    def __init__(self, role: str, message: str) -> None:
        super().__init__(role, message)
        self.role = role
        self.message = message

    def __str__(self) -> str:
        return f"{self.role}: {self.message}"


class RoleDied(EngineError):  # noqa: N818 - an event that is retried, not only an error
    """The role's process is gone; a new one may be spawned in its place."""


class RoleOutOfMemory(RoleDied):
    """The runtime ended the role because its machine ran out of memory."""


class PeerLost(RoleDied):
    """The role lives, but another role that it works with is gone, and so is their common work."""


class ObjectLost(EngineError):  # noqa: N818
    """The value existed, and its memory is gone (a node died)."""


class EngineDied(Exception):  # noqa: N818 - an event from outside
    """What runs the roles is dead or about to be ended; the message says what died and what may have done it.

    An engine raises this once, from `wait` or `get`. Roles that live still answer afterwards.
    objects_gone: whether only small values can be read from now on: weights and learner states cannot.
    """

    def __init__(self, message: str, *, objects_gone: bool) -> None:
        super().__init__(message)
        self.objects_gone = objects_gone


class RoleError(EngineError):
    """The role's own code raised; message is the traceback. Never retried, because it is a bug."""


class Calls(Protocol):
    """The part of an engine with which roles call other roles."""

    @property
    def host(self) -> str:
        """The IP address at which other roles of the run reach this process."""

    def call(
        self,
        handle: Handle[RoleT],
        method: Callable[[RoleT, *ArgTs], object],
        *args: *ArgTs,
        returns: int = 1,
    ) -> tuple[Ref[Any], ...]:
        """Starts a method of the role and returns at once. Refs among args arrive as their values.

        Calls of one caller to one role run in the order in which they were made. With returns > 1, the method
        returns a tuple of that length, and each element gets a Ref of its own.
        """

    def wait(self, refs: Collection[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        """Waits until a ref is ready or the timeout is over, and returns the refs that are ready."""

    def get(self, ref: Ref[ValueT]) -> ValueT:
        """Waits for the value and returns it. Raises RoleDied, ObjectLost or RoleError."""

    def put(self, value: ValueT) -> Ref[ValueT]:
        """Stores a value, so that it is sent once even if several calls take its Ref."""


class Engine(Calls, Protocol):
    """Spawns roles and ends them.

    Attributes:
        deterministic: whether calls never overlap, so that runs of equal configuration are equal bit for bit.
        own_processes: whether each role has its own process.
    """

    deterministic: bool
    own_processes: bool

    @property
    def calls(self) -> Calls:
        """The calls to hand to roles that call other roles."""

    @property
    def gpus(self) -> float:
        """GPUs that roles can claim."""

    def reserve(
        self,
        claims: Claims,
        *,
        wait_seconds: float,
        say: Callable[[str], None],
        stopped: Callable[[], object],
    ) -> None:
        """Reserves resources for a run's roles, waiting if necessary; say: called with texts about it.

        Returns early once stopped() is true. Raises TimeoutError, naming what is missing, after wait_seconds.
        """

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """Starts role(*args) and returns at once. The first get raises the error of a failing constructor."""

    def machine_of(self, handle: Handle[Any]) -> str:
        """The machine that a started role is on; empty for the coordinator's own."""

    def machines_leaving(self) -> frozenset[str]:
        """The machines that will leave soon, because they are drained or about to be preempted."""

    def kill(self, handle: Handle[Any]) -> None:
        """Ends a role. Calls in flight raise RoleDied; a call made right after may still be answered."""

    def end_roles(self) -> None:
        """Ends every role and keeps the engine, for the next start of the run's roles."""

    def close(self) -> None:
        """Ends every role and all that the engine started. Safe to call twice."""
