"""The serial engine: every role in this process, every call run where it is made.

Owns ordering and error translation; must not import ray.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from cluster.engines.engine import EngineError, Handle, Need, Ref, RoleDied, RoleError


@dataclass(eq=False)
class _Done:
    """The outcome of a call; compared by identity, so that it can be a Ref."""

    value: Any = None
    error: EngineError | None = None


@dataclass(eq=False)
class _Target:
    role: Any
    failure: EngineError | None = field(default=None)


class SerialEngine:
    """Deterministic: nothing overlaps, so the order of calls is the order of effects."""

    def __init__(self, output_of: Callable[[str], AbstractContextManager[object]] = nullcontext) -> None:
        """output_of: given a role's name, entered while that role's code runs."""
        self._handles: list[Handle] = []
        self._output_of = output_of

    @property
    def calls(self) -> SerialEngine:
        """Roles share this object: there is only one process."""
        return self

    def spawn(self, name: str, role: type, *args: Any, need: Need) -> Handle:
        """Builds the role now; a constructor's exception is kept for the first call, as Ray does."""
        try:
            with self._output_of(name):
                target = _Target(role(*args))
        except Exception:  # noqa: BLE001 - kept and raised by the first get
            target = _Target(None, RoleError(name, traceback.format_exc()))
        handle = Handle(name, target)
        self._handles.append(handle)
        return handle

    def call(self, handle: Handle, method: str, *args: Any, returns: int = 1) -> tuple[Ref, ...]:
        """Runs the method to its end; its exception waits in the Ref."""
        target: _Target = handle.target
        if target.failure is not None:
            return tuple(Ref(_Done(error=target.failure)) for _ in range(returns))
        try:
            given = [self._resolve(arg) for arg in args]
            with self._output_of(handle.name):
                value = getattr(target.role, method)(*given)
        except EngineError as error:
            return tuple(Ref(_Done(error=error)) for _ in range(returns))
        except Exception:  # noqa: BLE001 - carried to the caller as RoleError
            failure = RoleError(handle.name, traceback.format_exc())
            return tuple(Ref(_Done(error=failure)) for _ in range(returns))
        if returns == 1:
            return (Ref(_Done(value)),)
        return tuple(Ref(_Done(part)) for part in value)

    def wait(self, refs: Sequence[Ref], timeout_seconds: float) -> list[Ref]:
        """Everything is ready; one at a time, so that completions are handled in order of calls."""
        return list(refs[:1])

    def get(self, ref: Ref) -> Any:
        """The kept value, or the kept error raised."""
        done = self._done(ref)
        if done.error is not None:
            raise done.error
        return done.value

    def put(self, value: Any) -> Ref:
        """A Ref around the value itself."""
        return Ref(_Done(value))

    def machine_of(self, handle: Handle) -> str:
        """See Engine.machine_of: there is only one."""
        return ""

    def machines_leaving(self) -> frozenset[str]:
        """See Engine.machines_leaving."""
        return frozenset()

    def kill(self, handle: Handle) -> None:
        """Drops the role; later calls raise RoleDied."""
        target: _Target = handle.target
        target.role = None
        target.failure = RoleDied(handle.name, "killed")

    def close(self) -> None:
        """Drops every role."""
        while self._handles:
            self.kill(self._handles.pop())

    def _resolve(self, arg: Any) -> Any:
        return self.get(Ref(arg)) if isinstance(arg, _Done) else arg

    @staticmethod
    def _done(ref: Ref) -> _Done:
        if not isinstance(ref, _Done):
            raise TypeError(f"{ref!r} is no Ref of this engine")
        return ref
