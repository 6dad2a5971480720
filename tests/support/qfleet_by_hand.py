"""A run whose answers a test gives by hand: its roles do nothing, and every call waits to be answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from qfleet_scripted import Notes, config_of, context_of
from qfleet_serial import Recorder

from cluster.engines.engine import EngineError, Handle, Need, ObjectLost, Ref, RoleDied
from cluster.engines.process_info import ProcessInfo
from cluster.runtime.fleet import Fleet
from cluster.runtime.member import Member
from cluster.runtime.run_context import RunContext

UP = ProcessInfo(0, "", "")
"""What a role answers that has come up, on a machine that is not this one."""


@dataclass(eq=False)
class Asked(Ref[Any]):
    """A call that was made."""

    role: str
    method: str
    args: tuple[Any, ...]


@dataclass(eq=False)
class Given(Ref[Any]):
    """A value that has been there from the beginning. lost: its memory is gone."""

    value: Any
    lost: bool = False


@dataclass(eq=False)
class HandEngine:
    """Starts nothing and does nothing. spawned and killed: names of roles, in order."""

    deterministic: bool = False
    own_processes: bool = True
    gpus: float = 0.0
    spawned: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    machines: dict[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> HandEngine:
        return self

    def spawn(self, name: str, role: Callable[..., object], *args: Any, need: Need) -> Handle[Any]:
        self.spawned.append(name)
        return Handle(name, len(self.spawned))

    def call(
        self, handle: Handle[Any], method: Callable[..., object], *args: Any, returns: int = 1
    ) -> tuple[Ref[Any], ...]:
        return tuple(Asked(handle.name, method.__name__, args) for _ in range(returns))

    def get(self, ref: Any) -> Any:
        assert isinstance(ref, Given), "a test gives this value"
        if ref.lost:
            raise ObjectLost("learner", "its machine is gone")
        return ref.value

    def kill(self, handle: Handle[Any]) -> None:
        self.killed.append(handle.name)

    def machine_of(self, handle: Handle[Any]) -> str:
        return self.machines.get(handle.name, "")


class ByHand:
    """The parts of a run over a HandEngine. Overrides change config_of; folder is where checkpoints go."""

    def __init__(self, *overrides: str, folder: Path = Path("nowhere"), deterministic: bool = False) -> None:
        self.engine = HandEngine(deterministic)
        self.notes, self.recorder = Notes(folder), Recorder()
        config = config_of(*overrides)
        self.context: RunContext = context_of(self.engine, config, self.notes, self.recorder)

    @property
    def fleet(self) -> Fleet:
        return self.context.fleet

    @property
    def asked(self) -> list[Asked]:
        """The calls in flight, oldest first."""
        refs: list[Any] = list(self.fleet.credits)
        return refs

    def call(self, role: str, method: str) -> Asked:
        """The oldest of these calls that is in flight."""
        return next(call for call in self.asked if (call.role, call.method) == (role, method))

    def is_asked(self, role: str, method: str) -> bool:
        """Whether such a call is in flight."""
        return any((call.role, call.method) == (role, method) for call in self.asked)

    def answer(self, role: str, method: str, value: object = None) -> None:
        """The call is done and returned this; its credit goes back."""
        credit = self.fleet.settle(self.call(role, method))
        assert credit is not None
        credit.then(value)

    def lose_value(self, role: str, method: str) -> None:
        """The role lives, but an argument of the call, or its value, is gone."""
        credit = self.fleet.settle(self.call(role, method))
        assert credit is not None
        credit.lost(ObjectLost(role, "its machine is gone"))

    def come_up(self) -> None:
        """Every role that is starting is up."""
        for call in self.asked:
            if call.method == "process_info":
                self.answer(call.role, call.method, UP)

    def die(self, member: Member[Any], error: EngineError | None = None) -> Member[Any]:
        """The role is gone and replaced; returns its next incarnation."""
        return self.fleet.replace(member, error or RoleDied(member.name, "killed by hand"))


def weights(first: float) -> Given:
    """Flat weights that begin with this number."""
    return Given(np.full(3, first, np.float32))
