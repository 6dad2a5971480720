"""Calls to the roles of a fleet: granting them, and what is in flight, as cheap for 1,000 actors as for one.

Owns the credits with their sums, and which actors have room for another chunk; must not import ray or torch.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from cluster.control.timeouts import AwakeClock, RoleTimeouts
from cluster.engines.engine import ArgTs, Engine, EngineError, Ref, ValueT
from cluster.runtime.member import WORK, AnyRole, Credit, CreditKind, Member, nothing
from cluster.runtime.roles import ActorRole, LearnerRole
from cluster.settings.resolved import ResolvedConfig

# One chunk in work and one waiting, so that no role idles until the coordinator grants the next.
_CREDITS_EACH = 2


class Credits(dict[Ref[Any], Credit]):
    """The credit of each call in flight, oldest first. Only `add` and `remove` change it: they keep the sums.

    Attributes:
        per_role: how many chunks an actor and the learner may have at a time.
        number: how many calls there are of each kind.
        short_actors: those that are up and have fewer chunks than that in flight, longest first.
        unacknowledged_transitions: those that actors have pushed and no shard has acknowledged yet.
    """

    def __init__(self, per_role: int) -> None:
        super().__init__()
        self.per_role = per_role
        self.number: Counter[CreditKind] = Counter()
        self.short_actors: dict[Member[ActorRole], None] = {}
        self._transitions: Counter[CreditKind] = Counter()
        self.unacknowledged_transitions = 0

    def add(self, ref: Ref[Any], credit: Credit) -> None:
        """Adds the credit of a call that was just made."""
        self[ref] = credit
        self.number[credit.kind] += 1
        self._transitions[credit.kind] += credit.transitions
        if credit.kind != "log":
            credit.member.in_flight.add(ref)
            self._take_chunks(credit, 1)

    def remove(self, ref: Ref[Any]) -> Credit | None:
        """Removes and returns the credit of a call; None if it has none any more."""
        credit = self.pop(ref, None)
        if credit is not None:
            self.number[credit.kind] -= 1
            self._transitions[credit.kind] -= credit.transitions
            credit.member.in_flight.discard(ref)
            self._take_chunks(credit, -1)
        return credit

    def came_up(self, member: Member[Any]) -> None:
        """Notes that a role has come up."""
        if member.kind == "actor" and member.chunks < self.per_role:
            self.short_actors.setdefault(member)

    def refund(self, member: Member[Any]) -> list[Credit]:
        """Removes and returns all that a role has in flight, because the role is gone."""
        self.take_unacknowledged(member, 0)
        refunded = [credit for ref in [*member.in_flight] if (credit := self.remove(ref)) is not None]
        self.short_actors.pop(member, None)
        return refunded

    def take_unacknowledged(self, actor: Member[Any], transitions: int) -> None:
        """Notes how many transitions of an actor no shard has acknowledged yet."""
        self.unacknowledged_transitions += transitions - actor.unacknowledged_transitions
        actor.unacknowledged_transitions = transitions

    @property
    def inserting(self) -> int:
        """Transitions of rollouts in flight, and those pushed that no shard has acknowledged yet."""
        return self._transitions["rollout"] + self.unacknowledged_transitions

    @property
    def sampling(self) -> int:
        """Transitions of learning chunks in flight."""
        return self._transitions["learn"]

    def _take_chunks(self, credit: Credit, more: int) -> None:
        """Keeps the member's chunks in flight, and whether it has room.

        Other calls take no place: one that waits for a long chunk would leave the actor idle after that.
        """
        member = credit.member
        if credit.kind not in WORK:
            return
        member.chunks += more
        if member.kind == "actor":
            if member.chunks < self.per_role:
                self.short_actors.setdefault(member)
            else:
                self.short_actors.pop(member, None)


class Granter:
    """Calls roles through the engine, and keeps the credit of each call until its value is there.

    Attributes:
        ranks: every rank of the learner; whoever spawns them sets it.
        credits: the calls in flight.
        clock, timeouts: how long roles take to answer, and may take.
    """

    ranks: list[Member[LearnerRole]]

    def __init__(self, engine: Engine, config: ResolvedConfig) -> None:
        self._engine = engine
        # A deterministic engine runs each call at once, so a second credit would only add policy lag.
        self.credits = Credits(1 if engine.deterministic else _CREDITS_EACH)
        self.clock = AwakeClock(time.monotonic())
        self.timeouts = RoleTimeouts(
            config.run.frozen_seconds, config.actors.chunk_deadline_seconds, compiles=config.learner.compile
        )

    @property
    def learner(self) -> Member[LearnerRole]:
        """Rank 0 of the learner."""
        return self.ranks[0]

    def grant(
        self,
        member: Member[AnyRole],
        method: Callable[[AnyRole, *ArgTs], ValueT],
        *args: *ArgTs,
        then: Callable[[ValueT], None] = nothing,
        lost: Callable[[EngineError], None] = nothing,
        kind: CreditKind = "other",
        transitions: int = 0,
    ) -> None:
        """Calls a method of the member; see Credit for `then`, `lost` and `transitions`."""
        (ref,) = self._engine.call(member.handle, method, *args)
        self._keep(ref, Credit(member, kind, then, lost, transitions))

    def grant_learner(
        self,
        method: Callable[[LearnerRole, *ArgTs], tuple[ValueT, np.ndarray]],
        *args: *ArgTs,
        then: Callable[[ValueT, Ref[np.ndarray]], None],
        others: Callable[[ValueT], None] = nothing,
        kind: CreditKind = "other",
        transitions: int = 0,
    ) -> None:
        """Calls a method that also returns weights of all ranks.

        `then` takes rank 0's value and the Ref of its weights, `others` the value of each other rank.
        """
        ref, weights = self._engine.call(self.learner.handle, method, *args, returns=2)
        self._keep(ref, Credit(self.learner, kind, lambda value: then(value, weights), nothing, transitions))
        for rank in self.ranks[1:]:
            ref, _ = self._engine.call(rank.handle, method, *args, returns=2)
            self._keep(ref, Credit(rank, "other", others, nothing, 0))

    def settle(self, ref: Ref[Any]) -> Credit | None:
        """Removes and returns the credit of a finished call; None if it was refunded when its member died."""
        credit = self.credits.remove(ref)
        if credit is not None and credit.kind != "log":
            member, timeouts = credit.member, self.timeouts
            seconds = self.clock.seconds - member.heard_at
            if credit.kind == "start":
                timeouts.came_up(member.kind, seconds)
            # Most answers are no news: neither the first to work of their kind nor the longest.
            elif seconds > timeouts.longest_answer[member.kind] or member.kind in timeouts.unproven:
                timeouts.answered(member.kind, seconds, worked=credit.kind in WORK)
            member.heard_at = self.clock.seconds
        return credit

    def granted(self, member: Member[Any], kind: CreditKind) -> int:
        """Number of calls of this kind that the member has in flight."""
        return sum(self.credits[ref].kind == kind for ref in member.in_flight)

    def _keep(self, ref: Ref[Any], credit: Credit) -> None:
        if credit.kind != "log" and not credit.member.in_flight:
            credit.member.heard_at = self.clock.seconds
        self.credits.add(ref, credit)


def as_argument(ref: Ref[ValueT]) -> ValueT:
    """Types `ref` as its value, to pass it to a call: the called role gets the value."""
    return cast(ValueT, ref)
