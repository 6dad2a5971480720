"""The fleet: which roles live, what each has been granted, and who replaces the dead.

Owns spawning and outstanding credits; talks to the engine only, must not import ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from actors.core import EnvSpec
from cluster.config import RunConfig
from cluster.engine import Engine, Handle, Need, Ref
from cluster.judge import EvaluationRequest
from cluster.presence import Presence
from cluster.roles import ActorRole, EvaluatorRole, LearnerRole, RoleContext, ShardRole
from cluster.threads import available_cores, learner_threads
from replay_service.sharding import shard_capacities

RoleKind = Literal["shard", "learner", "actor", "evaluator"]


@dataclass(frozen=True)
class Credit:
    """A call in flight: what was granted to whom. rows is in transitions; weights belong to an evaluation."""

    kind: Literal[
        "presence", "rollout", "learn", "evaluate", "status", "recovery", "replace_shard", "unconfirmed"
    ]
    member: Member
    rows: int = 0
    evaluation: EvaluationRequest | None = None
    weights: Ref | None = None


@dataclass(eq=False)
class Member:
    """One living role. rows_unacknowledged: rows it had pushed, not yet confirmed, when it last spoke."""

    kind: RoleKind
    index: int
    incarnation: int
    handle: Handle
    presence: Presence | None = None
    rows_unacknowledged: int = 0
    in_flight: set[Ref] = field(default_factory=set)

    @property
    def pid(self) -> int | None:
        """Its process, once it is up."""
        return self.presence.pid if self.presence else None


class Fleet:
    """Spawns every role of a run at once; a role's constructor runs while the others' do."""

    def __init__(
        self,
        engine: Engine,
        config: RunConfig,
        spec: EnvSpec,
        logs: Path,
        replay: Path,
        *,
        learner_gpus: float,
    ) -> None:
        self._engine = engine
        self._config = config
        self._spec = spec
        self._logs = logs
        self._replay = replay
        self.credits: dict[Ref, Credit] = {}
        self._capacities = shard_capacities(config.replay.capacity or 0, config.replay.num_shards)
        # The learner is spawned first after the shards that it talks to: it has the slowest imports.
        self.shards = [self._spawn_shard(index, 0) for index in range(config.replay.num_shards)]
        threads = learner_threads(available_cores(), busy_processes=(config.actors.num_actors or 1))
        handles = [shard.handle for shard in self.shards]
        self.learner = self._spawn(
            "learner", 0, 0, LearnerRole, engine.calls, handles, threads, gpus=learner_gpus
        )
        self.actors = [self._spawn_actor(index, 0) for index in range(config.actors.num_actors or 1)]
        self.evaluator = self._spawn("evaluator", 0, 0, EvaluatorRole)

    @property
    def members(self) -> list[Member]:
        """Everybody alive."""
        return [*self.shards, self.learner, *self.actors, self.evaluator]

    def grant(self, credit: Credit, method: str, *args: object, returns: int = 1) -> tuple[Ref, ...]:
        """Calls the member and keeps the credit under the first Ref of the reply."""
        refs = self._engine.call(credit.member.handle, method, *args, returns=returns)
        self.credits[refs[0]] = credit
        credit.member.in_flight.add(refs[0])
        return refs

    def settle(self, ref: Ref) -> Credit | None:
        """Takes a credit back; None if its member died before and it was refunded then."""
        credit = self.credits.pop(ref, None)
        if credit is not None:
            credit.member.in_flight.discard(ref)
        return credit

    def replace(self, dead: Member) -> Member:
        """Refunds the dead role's credits and spawns its next incarnation; not for the learner.

        A new shard is to be introduced to the others once it is up.
        """
        # It may only have been out of reach: two of them must never write one journal.
        self._engine.kill(dead.handle)
        for ref in dead.in_flight:
            self.credits.pop(ref, None)
        incarnation = dead.incarnation + 1
        if dead.kind == "actor":
            self.actors[dead.index] = self._spawn_actor(dead.index, incarnation)
            return self.actors[dead.index]
        if dead.kind == "shard":
            shard = self.shards[dead.index] = self._spawn_shard(dead.index, incarnation)
            self.grant(Credit("recovery", shard), "recovery")
            return shard
        self.evaluator = self._spawn("evaluator", 0, incarnation, EvaluatorRole)
        return self.evaluator

    def introduce(self, shard: Member) -> None:
        """Has everybody who calls shards call this one under its number from now on."""
        for member in (self.learner, *self.actors):
            self.grant(Credit("replace_shard", member), "replace_shard", shard.index, shard.handle)

    def ask_shards(self) -> None:
        """Asks every shard that is up for its status, unless it was asked already; one that is dead shows."""
        for shard in self.shards:
            if shard.pid is not None and not shard.in_flight:
                self.grant(Credit("status", shard), "status")

    def ask_idle_actors(self) -> None:
        """Asks actors that have nothing to do, yet unconfirmed rows, how many are left.

        Only an actor can tell, and pacing may not grant it another chunk before it has.
        """
        for actor in self.actors:
            if actor.rows_unacknowledged and not actor.in_flight:
                self.grant(Credit("unconfirmed", actor), "unconfirmed")

    def outstanding(self, kind: Literal["rollout", "learn"]) -> int:
        """Rows granted and not yet reported, or (rollout) reported and not yet confirmed by a shard."""
        granted = sum(credit.rows for credit in self.credits.values() if credit.kind == kind)
        return granted + (sum(actor.rows_unacknowledged for actor in self.actors) if kind == "rollout" else 0)

    def _spawn_shard(self, index: int, incarnation: int) -> Member:
        return self._spawn(
            "shard", index, incarnation, ShardRole, index, incarnation, self._capacities[index]
        )

    def _spawn_actor(self, index: int, incarnation: int) -> Member:
        shards = [shard.handle for shard in self.shards]
        return self._spawn(
            "actor", index, incarnation, ActorRole, self._engine.calls, shards, index, incarnation
        )

    def _spawn(
        self, kind: RoleKind, index: int, incarnation: int, role: type, *args: object, gpus: float = 0.0
    ) -> Member:
        name = kind if kind in ("learner", "evaluator") else f"{kind} {index}"
        context = RoleContext(name, self._config, self._spec, self._logs, self._replay)
        handle = self._engine.spawn(name, role, context, *args, need=Need(cpus=1.0, gpus=gpus))
        member = Member(kind, index, incarnation, handle)
        self.grant(Credit("presence", member), "presence")
        return member
