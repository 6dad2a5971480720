"""The fleet: which roles live, what each has been granted, and who replaces the dead.

Owns spawning and outstanding credits; talks to the engine only, must not import ray.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from actors.core import EnvSpec
from cluster.control.evaluation import EvaluationRequest
from cluster.control.timeouts import AwakeClock, RoleTimeouts
from cluster.engines.engine import Engine, Handle, Need, Ref
from cluster.engines.process_info import ProcessInfo
from cluster.engines.threads import available_cores, learner_threads
from cluster.metrics.counters import FleetMetrics
from cluster.record.logs import LogSource
from cluster.runtime.roles import ActorRole, EvaluatorRole, LearnerRole, RoleContext, ShardRole
from cluster.settings.resolved import ResolvedConfig
from replay_service.sharding import shard_capacities

RoleKind = Literal["shard", "learner", "actor", "evaluator"]


def role_name(kind: RoleKind, index: int) -> str:
    """What messages, logs and checkpoints call a role."""
    return kind if kind in ("learner", "evaluator") else f"{kind} {index}"


@dataclass(frozen=True)
class Credit:
    """A call in flight: what was granted to whom. rows is in transitions; weights belong to an evaluation."""

    kind: Literal[
        "process_info",
        "rollout",
        "learn",
        "evaluate",
        "status",
        "recovery",
        "replace_shard",
        "place",
        "unacknowledged",
        "log",
        "state",
        "restore",
        "seal",
    ]
    member: Member
    rows: int = 0
    evaluation: EvaluationRequest | None = None
    weights: Ref | None = None


@dataclass(eq=False)
class Member:
    """One living role. unacknowledged_transitions: rows it had pushed, not yet confirmed, when it last spoke.

    place: of an actor, its rank among how many; what it was last told. machine: see Engine.machine_of.
    heard_at: on the fleet's clock, when it last answered, or was given something to do after idling.
    """

    kind: RoleKind
    index: int
    incarnation: int
    handle: Handle
    process_info: ProcessInfo | None = None
    unacknowledged_transitions: int = 0
    place: tuple[int, int] | None = None
    machine: str = ""
    heard_at: float = 0.0
    in_flight: set[Ref] = field(default_factory=set)

    @property
    def pid(self) -> int | None:
        """Its process, once it is up."""
        return self.process_info.pid if self.process_info else None


class Fleet:
    """Spawns every role of a run at once; a role's constructor runs while the others' do."""

    def __init__(
        self,
        engine: Engine,
        config: ResolvedConfig,
        spec: EnvSpec,
        logs: Path,
        replay: Path,
        *,
        learner_gpus: float,
        run_started_at: float,
        incarnations: Mapping[str, int],
    ) -> None:
        """run_started_at: unix seconds. incarnations: with which roles begin, by name; the others with 0."""
        self._engine = engine
        self._run_started_at = run_started_at
        self._config = config
        self._spec = spec
        self._logs = logs
        self._replay = replay
        self.credits: dict[Ref, Credit] = {}
        self.clock = AwakeClock(time.monotonic())
        self.timeouts = RoleTimeouts(
            config.run.frozen_seconds, spec.max_episode_steps, config.actors.chunk_deadline_seconds
        )
        self._capacities = shard_capacities(config.replay.capacity, config.replay.num_shards)
        # The learner is spawned first after the shards that it talks to: it has the slowest imports.
        first = incarnations.get
        self.shards = [
            self._spawn_shard(index, first(role_name("shard", index), 0))
            for index in range(config.replay.num_shards)
        ]
        self._learner_gpus = learner_gpus
        self.learner = self._spawn_learner(first("learner", 0))
        self.actors = [
            self._spawn_actor(index, first(role_name("actor", index), 0))
            for index in range(config.actors.num_actors)
        ]
        self.evaluator = self._spawn("evaluator", 0, first("evaluator", 0), EvaluatorRole)

    @property
    def members(self) -> list[Member]:
        """Everybody alive."""
        return [*self.shards, self.learner, *self.actors, self.evaluator]

    def grant(self, credit: Credit, method: str, *args: object, returns: int = 1) -> tuple[Ref, ...]:
        """Calls the member and keeps the credit under the first Ref of the reply."""
        refs = self._engine.call(credit.member.handle, method, *args, returns=returns)
        self.credits[refs[0]] = credit
        if not credit.member.in_flight:
            credit.member.heard_at = self.clock.seconds
        credit.member.in_flight.add(refs[0])
        return refs

    def settle(self, ref: Ref) -> Credit | None:
        """Takes a credit back; None if its member died before and it was refunded then."""
        credit = self.credits.pop(ref, None)
        if credit is not None:
            member = credit.member
            member.in_flight.discard(ref)
            seconds = self.clock.seconds - member.heard_at
            if credit.kind == "process_info":
                self.timeouts.came_up(member.kind, seconds)
            elif credit.kind != "log":
                self.timeouts.answered(member.kind, seconds)
            if credit.kind != "log":
                member.heard_at = self.clock.seconds
        return credit

    def frozen(self) -> tuple[Member, float] | None:
        """A role that is up but silent for longer than its work ever takes, and for how many seconds.

        A shard before all others: they may only be waiting for it.
        """
        limits = self.timeouts.limits()
        for member in self.members:
            silent_seconds = self.clock.seconds - member.heard_at
            if member.pid is not None and member.in_flight and silent_seconds > limits[member.kind]:
                return member, silent_seconds
        return None

    def replace(self, dead: Member) -> Member:
        """Refunds the dead role's credits and spawns its next incarnation.

        A new shard is to be introduced to the others once it is up; a new learner to be given a state.
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
            # Whoever waited for it begins to answer now only.
            for member in self.members:
                member.heard_at = self.clock.seconds
            shard = self.shards[dead.index] = self._spawn_shard(dead.index, incarnation)
            self.grant(Credit("recovery", shard), "recovery")
            return shard
        if dead.kind == "learner":
            self.learner = self._spawn_learner(incarnation)
            return self.learner
        self.evaluator = self._spawn("evaluator", 0, incarnation, EvaluatorRole)
        return self.evaluator

    def introduce(self, shard: Member) -> None:
        """Has everybody who calls shards call this one under its number from now on."""
        for member in (self.learner, *self.actors):
            self.grant(Credit("replace_shard", member), "replace_shard", shard.index, shard.handle)

    def spread_ladder(self) -> None:
        """Tells actors their rank among those that are up, where there is a ladder of epsilons to spread."""
        if self._config.actors.epsilon_ladder is None:
            return
        living = [actor for actor in self.actors if actor.pid is not None]
        for rank, actor in enumerate(living):
            place = (rank, len(living))
            if actor.place != place:
                actor.place = place
                self.grant(Credit("place", actor), "take_place", *place)

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
            if actor.unacknowledged_transitions and not actor.in_flight:
                self.grant(Credit("unacknowledged", actor), "unacknowledged")

    def ask_logs(self) -> None:
        """Asks roles on machines without the run's folder for what they have said since.

        These calls are nobody's work: they count neither as in flight nor as a sign of death.
        """
        asked = {credit.member for credit in self.credits.values() if credit.kind == "log"}
        for member in self.members:
            if member.process_info is not None and member.process_info.relays_log and member not in asked:
                (ref,) = self._engine.call(member.handle, "take_log")
                self.credits[ref] = Credit("log", member)

    def figures(self) -> FleetMetrics:
        """How many roles are wanted and up, and what is in flight."""
        members, granted = self.members, Counter(credit.kind for credit in self.credits.values())
        kinds: Counter[str] = Counter(member.kind for member in members)
        return FleetMetrics(
            wanted=dict(kinds),
            up={
                kind: sum(member.pid is not None for member in members if member.kind == kind)
                for kind in kinds
            },
            credits={kind: granted[kind] for kind in ("rollout", "learn", "evaluate")},
            unacknowledged_transitions=sum(actor.unacknowledged_transitions for actor in self.actors),
        )

    def granted(self, member: Member, kind: str) -> int:
        """How many calls of this kind the member has in flight."""
        return sum(self.credits[ref].kind == kind for ref in member.in_flight)

    def outstanding(self, kind: Literal["rollout", "learn"]) -> int:
        """Rows granted and not yet reported, or (rollout) reported and not yet confirmed by a shard."""
        granted = sum(credit.rows for credit in self.credits.values() if credit.kind == kind)
        return granted + (
            sum(actor.unacknowledged_transitions for actor in self.actors) if kind == "rollout" else 0
        )

    def _spawn_shard(self, index: int, incarnation: int) -> Member:
        return self._spawn(
            "shard", index, incarnation, ShardRole, index, incarnation, self._capacities[index]
        )

    def _spawn_learner(self, incarnation: int) -> Member:
        threads = learner_threads(available_cores(), busy_processes=self._config.actors.num_actors)
        handles = [shard.handle for shard in self.shards]
        calls, gpus = self._engine.calls, self._learner_gpus
        return self._spawn(
            "learner", 0, incarnation, LearnerRole, calls, handles, incarnation, threads, gpus=gpus
        )

    def _spawn_actor(self, index: int, incarnation: int) -> Member:
        shards = [shard.handle for shard in self.shards]
        actor = self._spawn(
            "actor", index, incarnation, ActorRole, self._engine.calls, shards, index, incarnation
        )
        actor.place = (index, self._config.actors.num_actors)
        return actor

    def _spawn(
        self, kind: RoleKind, index: int, incarnation: int, role: type, *args: object, gpus: float = 0.0
    ) -> Member:
        name = role_name(kind, index)
        # In the serial runtime every role shares the driver's process, and so its output.
        own_process = self._config.run.runtime != "serial"
        source = LogSource(name, incarnation, self._run_started_at) if own_process else None
        context = RoleContext(name, self._config, self._spec, self._logs, self._replay, source)
        handle = self._engine.spawn(name, role, context, *args, need=Need(cpus=1.0, gpus=gpus))
        member = Member(kind, index, incarnation, handle)
        self.grant(Credit("process_info", member), "process_info")
        return member
