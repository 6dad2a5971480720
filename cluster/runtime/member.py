"""The members of a fleet and the calls to them that are in flight, as values.

Owns these values; must not import ray or torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from cluster.engines.engine import EngineError, Handle, Ref
from cluster.engines.placement import RoleKind
from cluster.engines.process_info import ProcessInfo
from cluster.runtime.role import Role

AnyRole = TypeVar("AnyRole", bound=Role)

CreditKind = Literal["rollout", "learn", "evaluate", "start", "log", "other"]
"""Kinds of calls. Chunks of work are counted, starts are timed, and calls for logs are neither."""

WORK: frozenset[CreditKind] = frozenset(("rollout", "learn", "evaluate"))
"""The kinds that are chunks of work."""


def nothing(_: object) -> None:
    """The continuation of a credit whose result nobody needs."""


@dataclass(frozen=True, eq=False)
class Credit:
    """A call in flight, and what happens with its result: either `then` or `lost` is called, once.

    then: called with the value. lost: called with the reason why there is none: the role died, or the value's
    memory is gone.
    transitions: how many the call inserts or samples; pacing counts them while the call is in flight.
    """

    member: Member[Any]
    kind: CreditKind
    then: Callable[[Any], None]
    lost: Callable[[EngineError], None]
    transitions: int


@dataclass(eq=False)
class Member(Generic[AnyRole]):
    """One living role.

    process: known once the role is up. machine: see Engine.machine_of. heard_at: time on the fleet's clock
    when the role last answered, or was called after it had been idle. chunks: how many of the calls in flight
    are chunks of work.

    For actors only: unacknowledged_transitions: pushed but not acknowledged by a shard, at the last answer.
    rank: (place, number of actors) on the ladder of epsilons, as last sent. weights: those last sent.
    """

    kind: RoleKind
    index: int
    incarnation: int
    handle: Handle[AnyRole]
    process: ProcessInfo | None = None
    unacknowledged_transitions: int = 0
    rank: tuple[int, int] | None = None
    weights: Ref[np.ndarray] | None = None
    machine: str = ""
    heard_at: float = 0.0
    in_flight: set[Ref[Any]] = field(default_factory=set)
    chunks: int = 0

    @property
    def name(self) -> str:
        """See cluster.engines.placement.role_name."""
        return self.handle.name

    @property
    def is_up(self) -> bool:
        """Whether the role's constructor has finished."""
        return self.process is not None
