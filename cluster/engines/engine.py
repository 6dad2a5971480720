"""The engine: the interface behind which one process and a Ray cluster look alike.

Owns the interface and its errors; must not import ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, TypeVarTuple, cast

if TYPE_CHECKING:
    from cluster.engines.placement import Claims

RoleT = TypeVar("RoleT")
ValueT = TypeVar("ValueT")
ArgTs = TypeVarTuple("ArgTs")


class Ref(Generic[ValueT]):
    """Stands for a value that a call will return; hashable. Each engine has objects of its own for it."""


def passed(ref: Ref[ValueT]) -> ValueT:
    """`ref` as an argument of a call: the role that is called gets the value."""
    return cast(ValueT, ref)


@dataclass(frozen=True)
class Need:
    """Resources that a role claims where the runtime schedules by them; memory is reserved, not limited."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True)
class Handle(Generic[RoleT]):
    """A spawned role: `name` is what messages call it ("actor 3"), `target` belongs to the engine."""

    name: str
    target: Any


class EngineError(Exception):
    """A call that gave no value. `role` names the role that it went to."""

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


class ObjectLost(EngineError):  # noqa: N818
    """The value existed and its memory is gone (a node died)."""


class RoleError(EngineError):
    """The role's own code raised; message is its traceback. Never retried: it is a bug."""


class Calls(Protocol):
    """The half of the engine that roles themselves use, to talk to other roles."""

    def call(
        self,
        handle: Handle[RoleT],
        method: Callable[[RoleT, *ArgTs], object],
        *args: *ArgTs,
        returns: int = 1,
    ) -> tuple[Ref[Any], ...]:
        """Starts the role's method of this name and returns at once; Refs among args arrive as their values.

        Calls of one caller to one role run in the order in which they were made. With returns > 1
        the method returns a tuple of that length and each part gets a Ref of its own.
        """

    def wait(self, refs: Sequence[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        """Those of refs that are ready, as soon as there is at least one or the time is over."""

    def get(self, ref: Ref[ValueT]) -> ValueT:
        """The value; waits for it. Raises RoleDied, ObjectLost or RoleError."""

    def put(self, value: ValueT) -> Ref[ValueT]:
        """A Ref for a value of one's own, sent once however many calls take it."""


class Engine(Calls, Protocol):
    """Spawns roles and ends them.

    Attributes:
        deterministic: nothing overlaps, so that equal runs are equal bit for bit.
        own_processes: each role has a process to itself.
    """

    deterministic: bool
    own_processes: bool

    @property
    def calls(self) -> Calls:
        """What is handed to roles that call other roles."""

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
        """Makes sure that a run's roles have room; `say` is told of waiting and of places.

        Returns early once stopped() is true. Raises TimeoutError, naming what is missing, after wait_seconds.
        """

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """Starts role(*args) and returns at once; a failing constructor shows at the first get."""

    def machine_of(self, handle: Handle[Any]) -> str:
        """Which machine a role that is up is on; empty for the coordinator's own."""

    def machines_leaving(self) -> frozenset[str]:
        """The machines that are about to go: drained, or told that they will be preempted."""

    def kill(self, handle: Handle[Any]) -> None:
        """Ends a role: calls in flight raise RoleDied, one made right after may still be answered."""

    def end_roles(self) -> None:
        """Ends every role; the engine goes on, for the next life of the run."""

    def close(self) -> None:
        """Ends every role and whatever the engine started; safe to call twice."""
