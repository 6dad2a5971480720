"""The coordinator: one thread that grants credits, waits, and hands each result to its continuation.

Owns pacing, the newest weights, evaluation and the end of a run; must not import ray or torch.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, cast

import numpy as np

from actors.core import EnvRestart, RolloutReport
from cluster.checkpoints.checkpoint import SavedCheckpoint
from cluster.checkpoints.recovery import Recovery
from cluster.checkpoints.resume import Resumed
from cluster.control.ends import limit_reached, target_reached
from cluster.control.every import Every
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.engines.engine import EngineDied, EngineError, ObjectLost, Ref, RoleDied
from cluster.engines.placement import RoleKind
from cluster.metrics.snapshot import Snapshot
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
_LAST_WORDS_SECONDS = 2.0
_SLOWEST_STARTS = 6
_LAST_EVALUATION_SECONDS = 1.0
# A raylet that has lost its agents, as by `ray stop`, serves for ten more.
_LAST_ANSWERS_SECONDS = 8.0
_ALL_ROLES: frozenset[RoleKind] = frozenset(("shard", "learner", "actor", "evaluator"))
# Short, because the thread that writes a checkpoint does not end a wait.
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Outcome:
    """How a run ended. solved: stop.target_return held in both evaluations of the best version."""

    reason: str
    solved: bool
    best_version: int | None
    best_return_mean: float | None
    final: Snapshot
    restarts: int


class Coordinator:
    """Runs one life of a training run over an engine."""

    def __init__(
        self,
        context: RunContext,
        diagnosis: Diagnosis,
        *,
        stop_requested: Callable[[], str | None],
        resumed: Resumed | None = None,
        initial_weights: np.ndarray | None = None,
    ) -> None:
        """stop_requested: polled for a reason to stop, None to continue. initial_weights: see Recovery."""
        self._context = context
        self._engine, self._config = context.engine, context.config
        self._fleet, self._counters = context.fleet, context.counters
        self._selection, self._recorder = context.selection, context.recorder
        self._stop_requested = stop_requested
        self._expendable: frozenset[RoleKind] = frozenset()
        """Kinds of roles that the end of the run does not need: what becomes of them ends nothing."""
        self._weights: Ref[np.ndarray] | None = None
        """The newest weights, of version counters.version; None before the first, or after they were lost."""
        self._pacer = Pacer(context)
        self._snapshots = Snapshots(context, self._pacer, diagnosis)
        self._recovery = Recovery(
            context,
            publish=self._publish,
            restored=self._continue_restored,
            resumed=resumed,
            initial_weights=initial_weights,
        )
        self._restored = not self._recovery.restoring
        self._is_up = False
        self._paced_anew = resumed is not None and resumed.paced_anew
        now = time.monotonic()
        self._ladder = Ladder(self._fleet)
        self._supervisor = Supervisor(context, self._recovery, now)
        self._evaluations = Evaluations(context, self._supervisor.count_env_restarts)
        self._ask_shards = Every(min(_ASK_SHARDS_SECONDS, self._config.metrics.every_seconds), now)
        self._ask_logs = Every(_ASK_LOGS_SECONDS, now)
        self._save_weights = Every(self._config.checkpoint.weights_every_seconds, now)

    def run(self) -> Outcome | SavedCheckpoint:
        """Trains until a stop condition, a signal or a failure.

        In the serial runtime it also ends at each checkpoint; another life continues from there (see Lives).

        Raises:
            RunFailed: a role's own code raised, its restarts were used up, or the run stalled.
        """
        try:
            reason = None
            while reason is None:
                self._turn()
                reason = self._reason_to_stop()
                if reason is None and self._engine.deterministic and self._recovery.checkpoint_is_due():
                    self._work_until(lambda: not self._fleet.credits, float("inf"))
                    self._recovery.begin_checkpoint()
                    saved = self._finish_checkpoint()
                    if saved is not None:
                        return saved
            return self._finish(reason)
        except (RunFailed, EngineError) as error:
            self._recorder.event("failed", str(error))
            with contextlib.suppress(EngineError, EngineDied):  # the weights may have died with their machine
                self._save_latest()
                self._collect_logs()
            raise RunFailed(str(error), error.role, self._context.run_dir.logs) from None
        except EngineDied as death:
            return self._finish_without_engine(death)
        finally:
            self._recovery.close()

    def _turn(self) -> None:
        """Grants credits, waits for results, handles them, and does the periodic work that is due."""
        began = time.monotonic()
        # Before the state of all roles is restored, nothing is granted.
        if self._restored:
            self._grant()
            self._evaluate()
        asked = time.monotonic()
        ready = self._engine.wait(self._fleet.credits, _WAIT_SECONDS)
        waited_seconds = time.monotonic() - asked
        for ref in ready:
            self._complete(ref)
        self._do_periodic_work(idle=not ready)
        self._counters.take_wait(waited_seconds, time.monotonic() - began)

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

    def _evaluate(self) -> None:
        """Grants the evaluation that is due, if there is one."""
        # Initial weights that were given are worth an evaluation of their own; random ones are not.
        due = self._counters.version == 0 and self._recovery.starts_from_weights
        self._evaluations.grant(self._weights, due=due)

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
        # The engine passes the value of a Ref.
        if self._counters.clock.began is None:
            self._counters.clock.acted(time.monotonic())
        self._fleet.grant(
            actor,
            ActorRole.rollout,
            self._config.actors.steps_per_chunk,
            self._counters.version,
            None if self._weights is None or known else cast(np.ndarray, self._weights),
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
            if credit.member.kind in self._expendable:
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
        self._recovery.open_episodes.take(report)
        if actor.kind in self._expendable:
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
        self._recovery.tick(now)
        shards = self._counters.shards
        if self._ask_shards.due(now):
            self._fleet.ask_shards(self._counters.shards.take)
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
            self._snapshots.take(now)
        if self._save_weights.due(now):
            self._save_latest()

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

    def _reason_to_stop(self) -> str | None:
        asked = self._stop_requested()
        if asked is None and self._selection.solved:
            return target_reached(self._config.stop)
        counters = self._counters
        seconds = counters.clock.seconds(time.monotonic())
        return asked or limit_reached(self._config.stop, counters.shards.env_steps, counters.version, seconds)

    def _finish(self, reason: str) -> Outcome:
        """Evaluates and saves the last version, takes the last checkpoint and snapshot."""
        saved, version = self._save_latest(), self._counters.version
        if self._stop_requested() is not None:
            self._expendable = frozenset(("actor", "evaluator"))
        elif not self._selection.solved:
            self._evaluate_last()
        self._finish_checkpoint()
        if self._recovery.has_unsaved_progress():
            self._recovery.begin_checkpoint(last=True)
            self._finish_checkpoint()
        if self._counters.version >= version:  # a learner that died meanwhile went on from an older one
            saved = self._save_latest()
        if not saved:
            path = self._context.run_dir.path
            raise RunFailed(f"{reason}, but the newest weights could not be written to {path}")
        self._fleet.ask_shards(self._counters.shards.take)
        self._work_until(self._fleet.shards_are_idle, _LAST_WORDS_SECONDS, watched=False)
        self._collect_logs()
        return _outcome(self._context, reason, self._snapshots.take(time.monotonic()))

    def _finish_without_engine(self, death: EngineDied) -> Outcome:
        """Saves what still answers, as roles may live on. Raises RunFailed if no signal had asked to stop."""
        reason = self._stop_requested()
        if reason is not None and not death.objects_gone:
            return self._finish(reason)
        self._expendable = _ALL_ROLES
        self._recorder.event("failed", str(death))
        if death.objects_gone:
            self._recovery.use_kept_state()
        else:
            self._save_latest()
        if self._recovery.has_unsaved_progress():
            self._recovery.begin_checkpoint()
        self._finish_checkpoint(_LAST_ANSWERS_SECONDS)
        if reason is None:
            raise RunFailed(str(death))
        return _outcome(self._context, reason, self._snapshots.take(time.monotonic()))

    def _evaluate_last(self) -> None:
        """Evaluates the last version, which may be the best, after the calls to the learner have finished."""
        counters, limit = self._counters, self._config.stop.seconds
        late = counters.clock.left(limit) <= 0.0
        seconds = max(self._config.run.stall_seconds, 10 * counters.clock.longest_evaluation_seconds)
        if late:
            # stop.seconds means what it says: at most a chunk of updates, and a second for the evaluation.
            seconds = 2 * counters.clock.longest_chunk_seconds + _LAST_EVALUATION_SECONDS
        deadline = time.monotonic() + seconds

        def wait_idle(member: Callable[[], Member[Any]]) -> bool:
            done = self._work_until(
                lambda: not member().in_flight or self._stop_requested() is not None,
                deadline - time.monotonic() if late else seconds,
            )
            return done and self._stop_requested() is None

        idle = wait_idle(lambda: self._fleet.learner)
        if late:
            seconds, deadline = _LAST_EVALUATION_SECONDS, time.monotonic() + _LAST_EVALUATION_SECONDS
        idle = idle and wait_idle(lambda: self._fleet.evaluator)
        while idle and not (late and time.monotonic() + counters.clock.longest_evaluation_seconds > deadline):
            if not self._evaluations.grant(self._weights, due=True):
                return
            idle = wait_idle(lambda: self._fleet.evaluator)
        if self._stop_requested() is None:
            self._recorder.info(f"the last evaluation would not end within {seconds:.3g} s and is left out")

    def _finish_checkpoint(self, seconds: float | None = None) -> SavedCheckpoint | None:
        """Waits for a checkpoint in progress, by default run.stall_seconds; returns it if it was saved."""
        saved: SavedCheckpoint | None = None

        def ended() -> bool:
            nonlocal saved
            saved = self._recovery.take_finished() or saved
            return not self._recovery.checkpointing

        seconds = self._config.run.stall_seconds if seconds is None else seconds
        if not self._work_until(ended, seconds, watched=not self._expendable >= _ALL_ROLES):
            self._recorder.warning("no checkpoint: it was not finished in time; the one before stays")
        return saved

    def _work_until(self, done: Callable[[], bool], seconds: float, *, watched: bool = True) -> bool:
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

    def _collect_logs(self) -> None:
        """Fetches the last log lines of roles on other machines; waits two seconds at most."""
        self._fleet.ask_logs()
        self._work_until(lambda: not self._fleet.logs_asked(), _LAST_WORDS_SECONDS, watched=False)

    def _save_latest(self) -> bool:
        """Saves the newest weights, if there are any; returns False if they are lost or cannot be written."""
        if self._weights is None:
            return True
        try:
            flat = self._engine.get(self._weights)
        except ObjectLost:
            self._publish(None)
            return False
        return self._recorder.latest(self._counters.version, flat)


def _outcome(context: RunContext, reason: str, final: Snapshot) -> Outcome:
    """Records the end of the run. final: its last snapshot."""
    if context.counters.updates == 0:
        context.recorder.warning(
            "this run has learned nothing: it ended before its first update, at "
            f"{final.env_steps_total:,} environment steps"
        )
    context.recorder.event("ended", reason)
    best = context.selection.best
    return Outcome(
        reason=reason,
        solved=context.selection.solved,
        best_version=best.version if best else None,
        best_return_mean=best.score if best else None,
        final=final,
        restarts=context.counters.restarts,
    )


def _start_text(role_seconds: Mapping[str, float], seconds: float) -> str:
    """How long the start of a life took, and how long each role's, the slowest first."""
    slowest = sorted(role_seconds.items(), key=itemgetter(1), reverse=True)[:_SLOWEST_STARTS]
    roles = ", ".join(f"{name} {each:.1f}" for name, each in slowest)
    return f"all roles are up {seconds:.1f} s after the start; theirs took: {roles} s"
