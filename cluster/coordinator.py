"""The coordinator: one thread that grants credits, waits, and hands each result to its continuation.

Owns pacing, the newest weights and what is done in each turn; must not import ray or torch.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from actors.core import EnvRestart, RolloutReport
from cluster.checkpoints.recovery import Recovery
from cluster.checkpoints.resume import Resumed
from cluster.control.every import Every
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.engines.engine import EngineError, ObjectLost, Ref, RoleDied
from cluster.engines.placement import RoleKind
from cluster.runtime.credits import as_argument
from cluster.runtime.evaluations import Evaluations
from cluster.runtime.failure import RunFailed
from cluster.runtime.ladder import Ladder
from cluster.runtime.member import Credit, Member
from cluster.runtime.pacer import Pacer
from cluster.runtime.roles import ActorRole, LearnerRole
from cluster.runtime.run_context import RunContext
from cluster.runtime.snapshots import Snapshots
from cluster.supervisor import Supervisor
from learner.core import LearnReport

_WAIT_SECONDS = 0.25
_ASK_SHARDS_SECONDS = 0.5
_ASK_LOGS_SECONDS = 5.0
_SLOWEST_STARTS = 6
# Short, because the thread that writes a checkpoint does not end a wait.
_POLL_SECONDS = 0.02


class Coordinator:
    """Lets the roles of one life of a run work, turn by turn.

    Attributes:
        recovery: keeps and restores the state of roles.
        snapshots: measure the run.
        expendable: kinds of roles that the end of the run does not need; what becomes of them ends nothing.
    """

    def __init__(
        self,
        context: RunContext,
        diagnosis: Diagnosis,
        *,
        resumed: Resumed | None = None,
        initial_weights: np.ndarray | None = None,
    ) -> None:
        """initial_weights: see Recovery."""
        self._context = context
        self._engine, self._config = context.engine, context.config
        self._fleet, self._counters = context.fleet, context.counters
        self._recorder = context.recorder
        self.expendable: frozenset[RoleKind] = frozenset()
        self._weights: Ref[np.ndarray] | None = None
        """The newest weights, of version counters.version; None before the first, or after they were lost."""
        self._pacer = Pacer(context)
        self.snapshots = Snapshots(context, self._pacer, diagnosis)
        self.recovery = Recovery(
            context,
            publish=self._publish,
            restored=self._continue_restored,
            resumed=resumed,
            initial_weights=initial_weights,
        )
        self._restored = not self.recovery.restoring
        self._is_up = False
        self._paced_anew = resumed is not None and resumed.paced_anew
        now = time.monotonic()
        self._ladder = Ladder(self._fleet)
        self._supervisor = Supervisor(context, self.recovery, now)
        self._evaluations = Evaluations(context, self._supervisor.count_env_restarts)
        self._ask_shards = Every(min(_ASK_SHARDS_SECONDS, self._config.metrics.every_seconds), now)
        self._ask_logs = Every(_ASK_LOGS_SECONDS, now)
        self._save_weights = Every(self._config.checkpoint.weights_every_seconds, now)

    def turn(self) -> None:
        """Grants credits, waits for results, handles them, and does the periodic work that is due."""
        began = time.monotonic()
        # Before the state of all roles is restored, nothing is granted.
        if self._restored:
            self._grant()
            # Initial weights that were given are worth an evaluation of their own; random ones are not.
            self.evaluate(due=self._counters.version == 0 and self.recovery.starts_from_weights)
        asked = time.monotonic()
        ready = self._engine.wait(self._fleet.credits, _WAIT_SECONDS)
        waited_seconds = time.monotonic() - asked
        for ref in ready:
            self._complete(ref)
        self._do_periodic_work(idle=not ready)
        self._counters.take_wait(waited_seconds, time.monotonic() - began)

    def work_until(self, done: Callable[[], bool], seconds: float, *, watched: bool = True) -> bool:
        """Handles results until done() holds or `seconds` have passed; returns whether done() held.

        watched: whether the supervisor looks for roles that hang meanwhile.
        """
        deadline = time.monotonic() + seconds
        while not (is_done := done()) and time.monotonic() < deadline:
            for ref in self._engine.wait(self._fleet.credits, _POLL_SECONDS):
                self._complete(ref)
            if watched:
                self._supervisor.look(time.monotonic(), idle=False)
        return is_done

    def evaluate(self, *, due: bool) -> bool:
        """Grants the next evaluation if the evaluator is free; returns whether it did.

        due: do not wait for evaluation.every_updates.
        """
        return self._evaluations.grant(self._weights, due=due)

    def save_latest(self) -> bool:
        """Saves the newest weights, if there are any; returns False if they are lost or cannot be written."""
        if self._weights is None:
            return True
        try:
            flat = self._engine.get(self._weights)
        except ObjectLost:
            self._publish(None)
            return False
        return self._recorder.latest(self._counters.version, flat)

    def _grant(self) -> None:
        """Hands out chunks of acting and learning, as far as pacing allows."""
        for depth in range(self._fleet.credits.per_role):
            for actor in [short for short in self._fleet.credits.short_actors if short.chunks <= depth]:
                if not self._pacer.may_act():
                    break
                self._grant_rollout(actor)
        while self._fleet.learner_is_ready and self._may_learn() and (updates := self._pacer.next_updates()):
            self._fleet.grant_learner(
                LearnerRole.learn,
                updates,
                then=partial(self._take_learning, updates),
                others=self._counters.take_rank,
                kind="learn",
                transitions=updates * self._config.learner.batch_size,
            )

    def _may_learn(self) -> bool:
        """Whether a further chunk of updates would begin before stop.seconds is reached."""
        limit = self._config.stop.seconds
        if limit is None:
            return True
        granted = self._fleet.granted(self._fleet.learner, "learn")
        return granted * self._counters.clock.longest_chunk_seconds <= self._counters.clock.left(limit)

    def _grant_rollout(self, actor: Member[ActorRole]) -> None:
        # Weights that the actor has are not sent again, except to noisy networks: loading draws new noise.
        known = self._weights is actor.weights and not self._config.learner.noisy
        actor.weights = self._weights
        if self._counters.clock.began is None:
            self._counters.clock.began = time.monotonic()
        self._fleet.grant(
            actor,
            ActorRole.rollout,
            self._config.actors.steps_per_chunk,
            self._counters.version,
            None if self._weights is None or known else as_argument(self._weights),
            self._counters.shards.env_steps,
            then=partial(self._take_rollout, actor),
            lost=partial(self._lose_rollout, actor),
            kind="rollout",
            transitions=self._pacer.chunk_transitions,
        )

    def _complete(self, ref: Ref[Any]) -> None:
        """Hands a result to the continuation that its credit carries."""
        credit = self._fleet.settle(ref)
        if credit is None:
            return
        try:
            value = self._engine.get(ref)
        except EngineError as error:
            if credit.member.kind in self.expendable:
                credit.lost(error)
            elif isinstance(error, RoleDied | ObjectLost):
                self._lose(credit, error)
            else:
                raise RunFailed(
                    f"{error.message}\n{error.role} raised the error above; the run has ended.", error.role
                ) from None
        else:
            credit.then(value)

    def _lose(self, credit: Credit, error: EngineError) -> None:
        """Handles a lost result: replaces the role, unless only the weights that it was given are gone."""
        credit.lost(error)
        if isinstance(error, ObjectLost) and credit.kind in ("rollout", "evaluate"):
            # The learner's machine held them; the learner's replacement publishes new ones.
            self._publish(None)
        elif credit.kind != "log":
            self._supervisor.replace_dead(credit.member, error, time.monotonic())

    def _take_rollout(self, actor: Member[ActorRole], report: RolloutReport) -> None:
        self._fleet.credits.take_unacknowledged(actor, report.unacknowledged_transitions)
        self._counters.take_rollout(report)
        self.recovery.open_episodes.take(report)
        if actor.kind in self.expendable:
            return  # what made an environment fail may be the signal that also stopped the run
        if report.bounds.beyond:
            self._recorder.warning_once(report.bounds.text)
        if report.env_restarts:
            self._supervisor.count_env_restarts(actor, report.env_restarts)
        if report.memory_excess:
            restart = EnvRestart("memory", None, f"its processes hold {report.memory_excess}")
            self._supervisor.replace_actor(actor, "memory", restart)

    def _lose_rollout(self, actor: Member[ActorRole], error: EngineError) -> None:
        actor.weights = None  # they may not have arrived

    def _take_learning(self, granted_updates: int, report: LearnReport, weights: Ref[np.ndarray]) -> None:
        self._counters.take_learning(report, self._config.learner.batch_size)
        self._publish(weights)
        for note in report.notes:
            self._recorder.event(note.kind, note.text)
        if report.updates < granted_updates:
            # The chunk ended early because a shard was lost: find out which.
            self._fleet.ask_shards(self._counters.shards.take)

    def _do_periodic_work(self, *, idle: bool) -> None:
        now = time.monotonic()
        if not self._is_up and all(member.is_up for member in self._fleet.members):
            self._is_up = True
            self._recorder.info(_start_text(self._fleet.start_seconds, now - self._context.started))
        self._supervisor.look(now, idle=idle)
        self.recovery.tick(now)
        shards = self._counters.shards
        if self._ask_shards.due(now):
            self._fleet.ask_shards(shards.take)
            self._fleet.ask_idle_actors(shards.take)
            for status in shards.living():
                self._recorder.journal(status)
            for shard, metrics in shards.living_metrics().items():
                self._recorder.refusals(shard, metrics)
        if self._ask_logs.due(now):
            self._fleet.ask_logs()
            if self._config.actors.epsilon_ladder is not None:
                self._ladder.spread()
        # Before all roles are back their totals are not known.
        due = self._counters.interval_seconds(now) >= self._config.metrics.every_seconds
        if due and self._restored:
            self.snapshots.take(now)
        if self._save_weights.due(now):
            self.save_latest()

    def _publish(self, weights: Ref[np.ndarray] | None) -> None:
        """Sets the weights that roles act with from now on; None: they keep those that they have."""
        self._weights = weights

    def _continue_restored(self) -> None:
        """Continues the run once the state of all its roles is restored."""
        self._restored = True
        if not self._engine.deterministic:  # whose lives follow each other within one interval
            self._counters.begin_interval(time.monotonic())
        if self._paced_anew:
            self._pacer.begin_here()
        # The lost learner had sampled the newer transitions: counting that prevents a burst of updates.
        self._counters.sampled_transitions += self._pacer.pacing.surplus_samples(self._pacer.ledger())


def _start_text(role_seconds: Mapping[str, float], seconds: float) -> str:
    """How long the start of a life took, and how long each role's, the slowest first."""
    slowest = sorted(role_seconds.items(), key=itemgetter(1), reverse=True)[:_SLOWEST_STARTS]
    roles = ", ".join(f"{name} {each:.1f}" for name, each in slowest)
    return f"all roles are up {seconds:.1f} s after the start; theirs took: {roles} s"
