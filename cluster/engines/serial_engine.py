"""The serial engine: all roles are in this process, and each call runs at once.

Owns ordering and error translation; must not import ray.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cluster.engines.engine import ArgTs, EngineError, Handle, Need, Ref, RoleDied, RoleError, RoleT, ValueT
from cluster.engines.placement import Claims


@dataclass(eq=False)
class _Done(Ref[Any]):
    """The outcome of a call; compared by identity, so that it is hashable."""

    value: Any = None
    error: EngineError | None = None


@dataclass(eq=False)
class _Target:
    role: Any
    failure: EngineError | None = None


class SerialEngine:
    """Runs every call to its end before the next one begins, which makes a run deterministic."""

    deterministic = True
    own_processes = False
    host = "127.0.0.1"
    gpus = 0.0  # nothing is claimed, and the learner uses the device that torch finds

    def __init__(self, output_of: Callable[[str], AbstractContextManager[object]] = nullcontext) -> None:
        """output_of: role name -> a context that is entered while that role's code runs."""
        self._handles: list[Handle[Any]] = []
        self._output_of = output_of

    @property
    def calls(self) -> SerialEngine:
        """This object: there is only one process."""
        return self

    def reserve(self, claims: Claims, **waiting: object) -> None:
        """Does nothing: one process needs no reservation."""

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """Builds the role now. A constructor's exception waits for the first call, as Ray's does."""
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
        """Runs the method to its end; its exception waits in the Refs."""
        target: _Target = handle.target
        try:
            if target.failure is not None:
                raise target.failure
            given = [self.get(arg) if isinstance(arg, _Done) else arg for arg in args]
            with self._output_of(handle.name):
                value = getattr(target.role, method.__name__)(*given)
            return tuple(map(_Done, value)) if returns > 1 else (_Done(value),)
        except EngineError as error:
            failure = error
        except Exception:  # noqa: BLE001 - carried to the caller as RoleError
            failure = RoleError(handle.name, traceback.format_exc())
        return tuple(_Done(error=failure) for _ in range(returns))

    def wait(self, refs: Collection[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        """Returns one ref at a time, all being ready, so that results are handled in the order of calls."""
        if not refs:
            time.sleep(timeout_seconds)
        return list(islice(refs, 1))

    def get(self, ref: Ref[ValueT]) -> ValueT:
        """Returns the value of a call, or raises its error."""
        if not isinstance(ref, _Done):
            raise TypeError(f"{ref!r} is no Ref of this engine")
        if ref.error is not None:
            raise ref.error
        value: ValueT = ref.value
        return value

    def put(self, value: ValueT) -> Ref[ValueT]:
        """A Ref around the value itself."""
        return _Done(value)

    def machine_of(self, handle: Handle[Any]) -> str:
        """See Engine.machine_of. There is only one machine."""
        return ""

    def machines_leaving(self) -> frozenset[str]:
        """See Engine.machines_leaving."""
        return frozenset()

    def kill(self, handle: Handle[Any]) -> None:
        """Drops the role. Later calls raise RoleDied."""
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
