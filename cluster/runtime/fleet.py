"""The fleet: spawns roles, asks them what they know, and replaces those that died.

Owns the living roles; calls the engine only. Must not import ray or torch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from actors.core import EnvSpec
from cluster.engines.engine import ArgTs, Engine, EngineError, Need
from cluster.engines.placement import RoleKind, role_name
from cluster.engines.process_info import ProcessInfo, require_same_code
from cluster.metrics.counters import FleetMetrics
from cluster.record.logs import LogSource, append
from cluster.runtime.credits import Granter
from cluster.runtime.evaluator_role import EvaluatorRole
from cluster.runtime.failure import RunFailed
from cluster.runtime.member import AnyRole, Member
from cluster.runtime.role import Role, RoleContext
from cluster.runtime.roles import ActorRole, LearnerRole
from cluster.runtime.shard_role import ShardRole
from cluster.settings.resolve import acts_with_torch
from cluster.settings.resolved import ResolvedConfig
from learner.core import Meeting
from replay_service.messages import ShardStatus
from replay_service.sharding import shard_capacities

_CLOSE_SECONDS = 5.0
_CLOSE_BUSY_SECONDS = 1.0


class Fleet(Granter):
    """Spawns every role of a run at once, so that their constructors run concurrently.

    The ranks of the learner are one for those who call it: `learner` is rank 0, which answers for all.

    Attributes:
        ranks: every rank, with the same incarnation.
        learner_is_ready: whether all ranks are up and connected.
    """

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
        note_incarnations: Callable[[Mapping[str, int]], None],
    ) -> None:
        """run_started_at: unix seconds. incarnations: role name -> first incarnation, if it is not 0.

        note_incarnations: called with role name -> incarnation before these roles start.
        """
        super().__init__(engine, config)
        self._config = config
        self.spec = spec
        self._logs = logs
        self._replay = replay
        self._learner_gpus = learner_gpus
        self._run_started_at = run_started_at
        self._torch_acts = acts_with_torch(config, spec)
        self._capacities = shard_capacities(config.replay.capacity, config.replay.num_shards)
        self._created = time.monotonic()
        self.starts = 0
        """Number of roles that have come up so far."""
        self.start_seconds: dict[str, float] = {}
        """Role -> seconds from the creation of the fleet until its first incarnation was up."""

        def first(kind: RoleKind, index: int = 0) -> int:
            return incarnations.get(role_name(kind, index), 0)

        self._note_incarnations = note_incarnations
        counts: dict[RoleKind, int] = {
            "shard": config.replay.num_shards,
            "learner": config.learner.num_learners,
            "actor": config.actors.num_actors,
            "evaluator": 1,
        }
        note_incarnations(
            {role_name(kind, index): first(kind, index) for kind in counts for index in range(counts[kind])}
        )
        # The learner has the slowest imports, so it is spawned as soon as the shards that it calls.
        self.shards = [self._spawn_shard(i, first("shard", i)) for i in range(config.replay.num_shards)]
        self.ranks = self._spawn_ranks(first("learner"))
        self.actors = [self._spawn_actor(i, first("actor", i)) for i in range(config.actors.num_actors)]
        self.evaluator = self._spawn_evaluator(first("evaluator"))

    @property
    def members(self) -> list[Member[Any]]:
        """Every role of the run, the shards first."""
        return [*self.shards, *self.ranks, *self.actors, self.evaluator]

    def frozen(self) -> tuple[Member[Any], float] | None:
        """A role whose call in flight has exceeded its timeout, and its seconds without an answer.

        Shards come first, because other roles may only be waiting for one.
        """
        return self._silent_beyond(self.timeouts.limits())

    def slow_at_first(self) -> tuple[Member[Any], float] | None:
        """A role whose first chunk takes longer than later ones may take, and its timeout in seconds."""
        slow = self._silent_beyond(self.timeouts.usual_limits())
        return None if slow is None else (slow[0], self.timeouts.limits()[slow[0].kind])

    def _silent_beyond(self, limits: Mapping[str, float]) -> tuple[Member[Any], float] | None:
        for member in self.members:
            silent_seconds = self.clock.seconds - member.heard_at
            if member.is_up and member.in_flight and silent_seconds > limits[member.kind]:
                return member, silent_seconds
        return None

    def replace(self, dead: Member[Any], error: EngineError) -> Member[Any]:
        """Refunds the dead role's credits and spawns its next incarnation, of a learner that of all ranks.

        The caller introduces a new shard once it is up, and gives a new learner its state.
        """
        for member in self.replaced_with(dead):
            # It may only be unreachable: two incarnations must never write one journal.
            self._engine.kill(member.handle)
            for credit in self.credits.refund(member):
                credit.lost(error)
        incarnation = dead.incarnation + 1
        self._note_incarnations({member.name: incarnation for member in self.replaced_with(dead)})
        if dead.kind == "shard":
            # Roles that waited for this shard could not answer meanwhile.
            for member in self.members:
                member.heard_at = self.clock.seconds
            self.shards[dead.index] = self._spawn_shard(dead.index, incarnation)
            return self.shards[dead.index]
        if dead.kind == "actor":
            self.actors[dead.index] = self._spawn_actor(dead.index, incarnation)
            return self.actors[dead.index]
        if dead.kind == "learner":
            self.ranks = self._spawn_ranks(incarnation)
            return self.learner
        self.evaluator = self._spawn_evaluator(incarnation)
        return self.evaluator

    def replaced_with(self, member: Member[Any]) -> list[Member[Any]]:
        """The roles that are replaced together: all ranks of the learner, otherwise only the role itself."""
        return [*self.ranks] if member.kind == "learner" else [member]

    def announce_shard(self, shard: Member[ShardRole]) -> None:
        """Tells the learner and every actor to call this shard instead of the one that it replaces."""
        for rank in self.ranks:
            self.grant(rank, LearnerRole.replace_shard, shard.index, shard.handle)
        for actor in self.actors:
            then = partial(self.credits.take_unacknowledged, actor)
            self.grant(actor, ActorRole.replace_shard, shard.index, shard.handle, then=then)

    def ask_shards(self, then: Callable[[tuple[ShardStatus, ...]], None]) -> None:
        """Asks every idle shard for its status, which also reveals a dead one."""
        for shard in self.shards:
            if shard.is_up and not shard.in_flight:
                self.grant(shard, ShardRole.status, then=lambda status: then((status,)))

    def shards_are_idle(self) -> bool:
        """Whether no shard has a call in work."""
        return not any(shard.in_flight for shard in self.shards)

    def ask_idle_actors(self, then: Callable[[tuple[ShardStatus, ...]], None]) -> None:
        """Asks idle actors with unacknowledged transitions how many are left.

        Pacing may grant an actor no further chunk before it has reported them.
        """

        def take(actor: Member[ActorRole], answer: tuple[int, tuple[ShardStatus, ...]]) -> None:
            transitions, statuses = answer
            self.credits.take_unacknowledged(actor, transitions)
            then(statuses)

        for actor in self.actors:
            if actor.unacknowledged_transitions and not actor.in_flight:
                self.grant(actor, ActorRole.unacknowledged, then=partial(take, actor))

    def ask_logs(self) -> None:
        """Asks roles on machines without the run's folder for their new log lines.

        These calls count neither as work in flight nor as answers within a timeout.
        """
        asked = self.logs_asked()
        for member in self.members:
            if member.process is not None and member.process.relays_log and member not in asked:
                then = partial(append, self._logs, member.name)
                self.grant(member, Role.take_log, then=then, kind="log")

    def logs_asked(self) -> set[Member[Any]]:
        """The roles that were asked for their log and have not answered yet."""
        return {credit.member for credit in self.credits.values() if credit.kind == "log"}

    def close_environments(self) -> None:
        """Closes the environments of all roles; waits five seconds at most, because a role may hang.

        An evaluation that was left unfinished gets one second: its role is busy, and its process is ended.

        A role in a process of its own that has not come up is left out: its process is ended instead.
        """
        seconds = _CLOSE_SECONDS if not self.granted(self.evaluator, "evaluate") else _CLOSE_BUSY_SECONDS
        engine, deadline = self._engine, time.monotonic() + seconds
        pending = {
            engine.call(member.handle, Role.close)[0]
            for member in self.members
            if member.kind in ("actor", "evaluator") and (member.is_up or not engine.own_processes)
        }
        while pending and (seconds := deadline - time.monotonic()) > 0.0:
            pending.difference_update(engine.wait(list(pending), seconds))

    def metrics(self) -> FleetMetrics:
        """Counts roles, credits and transitions in flight."""
        members, granted = self.members, self.credits.number
        wanted = Counter[str](member.kind for member in members)
        up = Counter[str](member.kind for member in members if member.is_up)
        return FleetMetrics(
            wanted=dict(wanted),
            up={kind: up[kind] for kind in wanted},
            credits={kind: granted[kind] for kind in ("rollout", "learn", "evaluate")},
            unacknowledged_transitions=self.credits.unacknowledged_transitions,
        )

    def _spawn_shard(self, index: int, incarnation: int) -> Member[ShardRole]:
        capacity = self._capacities[index]
        return self._spawn("shard", index, incarnation, ShardRole, index, incarnation, capacity)

    def _spawn_ranks(self, incarnation: int) -> list[Member[LearnerRole]]:
        self.learner_is_ready = False
        ranks = self._config.learner.num_learners
        shards = [shard.handle for shard in self.shards]

        def spawn(rank: int) -> Member[LearnerRole]:
            args, gpus = (self._engine.calls, shards, incarnation, rank), self._learner_gpus
            return self._spawn("learner", rank, incarnation, LearnerRole, *args, gpus=gpus, torch=True)

        return [spawn(rank) for rank in range(ranks)]

    def _connect_ranks(self) -> None:
        """Lets the ranks of the learner meet once all of them are up."""
        if all(rank.is_up for rank in self.ranks):
            self.learner_is_ready = len(self.ranks) == 1
            if not self.learner_is_ready:
                self.grant(self.learner, LearnerRole.open_meeting, then=self._let_meet)

    def _let_meet(self, meeting: Meeting) -> None:
        for rank in self.ranks:
            self.grant(rank, LearnerRole.meet, meeting)
        self.learner_is_ready = True  # calls are answered in order

    def _spawn_actor(self, index: int, incarnation: int) -> Member[ActorRole]:
        args = self._engine.calls, [shard.handle for shard in self.shards], index, incarnation
        actor = self._spawn("actor", index, incarnation, ActorRole, *args, torch=self._torch_acts)
        actor.rank = (index, self._config.actors.num_actors)
        return actor

    def _spawn_evaluator(self, incarnation: int) -> Member[EvaluatorRole]:
        return self._spawn("evaluator", 0, incarnation, EvaluatorRole, torch=self._torch_acts)

    def _spawn(
        self,
        kind: RoleKind,
        index: int,
        incarnation: int,
        role: Callable[[RoleContext, *ArgTs], AnyRole],
        *args: *ArgTs,
        gpus: float = 0.0,
        torch: bool = False,
    ) -> Member[AnyRole]:
        name = role_name(kind, index)
        source = None
        if self._engine.own_processes:
            source = LogSource(name, incarnation, self._run_started_at)
        context = RoleContext(name, self._config, self.spec, self._logs, self._replay, source)
        handle = self._engine.spawn(name, role, context, *args, need=Need(cpus=1.0, gpus=gpus, torch=torch))
        member = Member(kind, index, incarnation, handle)
        self.grant(member, Role.process_info, kind="start", then=partial(self._started, member))
        return member

    def _started(self, member: Member[Any], process: ProcessInfo) -> None:
        """Marks a role as up. Raises RunFailed if its process runs different code than this one."""
        try:
            require_same_code(process)
        except ImportError as error:
            raise RunFailed(f"{member.name}: {error}", member.name) from None
        member.process = process
        self.credits.came_up(member)
        member.machine = self._engine.machine_of(member.handle)
        self.starts += 1
        self.start_seconds.setdefault(member.name, time.monotonic() - self._created)
        if member.kind == "learner":
            self._connect_ranks()
