"""The serial engine: every role in this process, every call run where it is made.

Owns ordering and error translation; must not import ray.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from cluster.engines.engine import (
    ArgTs,
    EngineError,
    Handle,
    Need,
    Ref,
    RoleDied,
    RoleError,
    RoleT,
    ValueT,
)
from cluster.engines.placement import Claims


@dataclass(eq=False)
class _Done(Ref[Any]):
    """The outcome of a call; compared by identity, so that it is hashable."""

    value: Any = None
    error: EngineError | None = None


@dataclass(eq=False)
class _Target:
    role: Any
    failure: EngineError | None = field(default=None)


class SerialEngine:
    """Deterministic: nothing overlaps, so the order of calls is the order of effects."""

    deterministic = True
    own_processes = False

    def __init__(self, output_of: Callable[[str], AbstractContextManager[object]] = nullcontext) -> None:
        """output_of: given a role's name, entered while that role's code runs."""
        self._handles: list[Handle[Any]] = []
        self._output_of = output_of

    @property
    def calls(self) -> SerialEngine:
        """Roles share this object: there is only one process."""
        return self

    @property
    def gpus(self) -> float:
        """None is claimed: the one process uses what torch finds."""
        return 0.0

    def reserve(self, claims: Claims, **waiting: object) -> None:
        """There is nothing to reserve in one process."""

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """Builds the role now; a constructor's exception is kept for the first call, as Ray does."""
        try:
            with self._output_of(name):
                target = _Target(role(*args))
        except Exception:  # noqa: BLE001 - kept and raised by the first get
            target = _Target(None, RoleError(name, traceback.format_exc()))
        handle: Handle[RoleT] = Handle(name, target)
        self._handles.append(handle)
        return handle

    def call(
        self,
        handle: Handle[RoleT],
        method: Callable[[RoleT, *ArgTs], object],
        *args: *ArgTs,
        returns: int = 1,
    ) -> tuple[Ref[Any], ...]:
        """Runs the method to its end; its exception waits in the Ref."""
        target: _Target = handle.target
        if target.failure is not None:
            return tuple(_Done(error=target.failure) for _ in range(returns))
        try:
            given = [self._resolve(arg) for arg in args]
            with self._output_of(handle.name):
                value = getattr(target.role, method.__name__)(*given)
        except EngineError as error:
            return tuple(_Done(error=error) for _ in range(returns))
        except Exception:  # noqa: BLE001 - carried to the caller as RoleError
            failure = RoleError(handle.name, traceback.format_exc())
            return tuple(_Done(error=failure) for _ in range(returns))
        if returns == 1:
            return (_Done(value),)
        return tuple(_Done(part) for part in value)

    def wait(self, refs: Sequence[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        """Everything is ready; one at a time, so that completions are handled in order of calls."""
        if not refs:
            time.sleep(timeout_seconds)
        return list(refs[:1])

    def get(self, ref: Ref[ValueT]) -> ValueT:
        """The kept value, or the kept error raised."""
        done = self._done(ref)
        if done.error is not None:
            raise done.error
        value: ValueT = done.value
        return value

    def put(self, value: ValueT) -> Ref[ValueT]:
        """A Ref around the value itself."""
        return _Done(value)

    def machine_of(self, handle: Handle[Any]) -> str:
        """See Engine.machine_of: there is only one."""
        return ""

    def machines_leaving(self) -> frozenset[str]:
        """See Engine.machines_leaving."""
        return frozenset()

    def kill(self, handle: Handle[Any]) -> None:
        """Drops the role; later calls raise RoleDied."""
        target: _Target = handle.target
        target.role = None
        target.failure = RoleDied(handle.name, "killed")

    def end_roles(self) -> None:
        """Drops every role."""
        while self._handles:
            self.kill(self._handles.pop())

    def close(self) -> None:
        """Drops every role."""
        self.end_roles()

    def _resolve(self, arg: Any) -> Any:
        return self.get(arg) if isinstance(arg, _Done) else arg

    @staticmethod
    def _done(ref: Ref[Any]) -> _Done:
        if not isinstance(ref, _Done):
            raise TypeError(f"{ref!r} is no Ref of this engine")
        return ref
