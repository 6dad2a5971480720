"""The calls of a fleet that are in flight, with sums that cost as little for a thousand actors as for one.

Owns these sums, and which actors have room for another chunk; must not import ray or torch.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.engines.ref import Ref
from cluster.runtime.member import WORK, Credit, CreditKind, Member
from cluster.runtime.roles import ActorRole


class Credits(Mapping[Ref[Any], Credit]):
    """The credit of each call in flight, oldest first.

    Attributes:
        per_role: how many chunks an actor and the learner may have at a time.
        number: how many calls there are of each kind.
        short_actors: those that are up and have fewer chunks than that in flight, longest first.
        unacknowledged_transitions: those that actors have pushed and no shard has acknowledged yet.
    """

    def __init__(self, per_role: int) -> None:
        self.per_role = per_role
        self.number: Counter[CreditKind] = Counter()
        self.short_actors: dict[Member[ActorRole], None] = {}
        self._credits: dict[Ref[Any], Credit] = {}
        self._transitions: Counter[CreditKind] = Counter()
        self.unacknowledged_transitions = 0

    def add(self, ref: Ref[Any], credit: Credit) -> None:
        """Adds the credit of a call that was just made."""
        self._credits[ref] = credit
        self.number[credit.kind] += 1
        self._transitions[credit.kind] += credit.transitions
        if credit.kind != "log":
            credit.member.in_flight.add(ref)
            self._take_chunks(credit, 1)

    def pop(self, ref: Ref[Any]) -> Credit | None:
        """Removes and returns the credit of a call; None if it has none any more."""
        credit = self._credits.pop(ref, None)
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
        refunded = [credit for ref in [*member.in_flight] if (credit := self.pop(ref)) is not None]
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

    def __getitem__(self, ref: Ref[Any]) -> Credit:
        return self._credits[ref]

    def __contains__(self, ref: object) -> bool:
        return ref in self._credits

    def __iter__(self) -> Iterator[Ref[Any]]:
        return iter(self._credits)

    def __len__(self) -> int:
        return len(self._credits)
