"""The coordinator: one thread that grants credits, waits, and handles one completion after another.

Owns pacing, weight versions, restarts, evaluation and the end of a run; must not import ray or torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol

import numpy as np

from actors.core import EnvSpec, EvaluationReport, RolloutReport
from cluster.config import RunConfig
from cluster.engine import Engine, EngineError, ObjectLost, Ref, RoleDied
from cluster.figures import Figures
from cluster.fleet import Credit, Fleet, Member
from cluster.judge import EvaluationRequest, Judge
from cluster.metrics import Snapshot
from cluster.pacing import Ledger, Pacing, slack_samples
from cluster.presence import require_same_root
from cluster.run_dir import RunDir
from cluster.stacks import request_stack
from cluster.totals import ShardTotals
from learner.core import LearnReport
from replay_service.messages import ShardStatus
from replay_service.recovery import RecoveryReport

_Written = ParamSpec("_Written")

_WAIT_SECONDS = 0.25
_ASK_SHARDS_SECONDS = 0.5
# Two chunks each: one in work, one waiting, so that nobody idles while the coordinator thinks.
_CREDITS_EACH = 2


class RunFailed(Exception):  # noqa: N818 - the outcome of a run
    """The run cannot go on; the message begins with the traceback or fact that ended it."""


class Observer(Protocol):
    """Who is shown a run's figures and events while it goes on."""

    def figures(self, snapshot: Snapshot) -> None:
        """Every metrics.every_seconds, and once at the end."""

    def event(self, text: str, run_seconds: float) -> None:
        """Something worth a line: a restart, a new best, the reason of the end."""


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
    """Runs one training run over an engine. `stop_requested` is polled: a signal handler sets it."""

    def __init__(
        self,
        engine: Engine,
        config: RunConfig,
        spec: EnvSpec,
        run_dir: RunDir,
        observer: Observer,
        *,
        learner_gpus: float,
        stop_requested: Callable[[], str | None],
        started: float,
    ) -> None:
        self._engine = engine
        self._config = config
        self._run_dir = run_dir
        self._observer = observer
        self._stop_requested = stop_requested
        self._started = started
        self._fleet = Fleet(engine, config, spec, run_dir.logs, run_dir.replay, learner_gpus=learner_gpus)
        self._judge = Judge(config.evaluation, config.stop.target_return)
        self._chunk_steps = config.actors.steps_per_chunk or 1
        self._chunk_rows = self._chunk_steps * (config.actors.envs_per_actor or 1)
        self._chunk_updates = config.learner.updates_per_chunk or 1
        self._batch_size = config.learner.batch_size
        # Half of a shard so small that rows leave it early: such a batch only repeats more of them.
        self._least_rows = min(self._batch_size, (config.replay.capacity or 2) // 2)
        # The serial runtime runs each call where it is made: a second credit would only add policy lag.
        self._credits_each = 1 if config.run.runtime == "serial" else _CREDITS_EACH
        # A chunk stays outstanding until a shard confirms it, and its actor says so with its next chunk only.
        unconfirmed = 0 if config.run.runtime == "serial" else config.actors.pushes_in_flight
        rollout_rows = (self._credits_each + unconfirmed) * len(self._fleet.actors) * self._chunk_rows
        learn_rows = self._credits_each * self._chunk_updates * self._batch_size
        self._pacing = Pacing(
            config.pacing.samples_per_insert,
            config.pacing.learning_starts,
            slack_samples(config.pacing.samples_per_insert, rollout_rows, learn_rows),
        )
        self._totals = ShardTotals()
        self._weights: Ref | None = None
        self._candidate_weights: Ref | None = None
        self._learn_weights: dict[Ref, Ref] = {}
        self._figures = Figures(started, time.monotonic(), len(self._fleet.actors))
        self._asked_at = time.monotonic()
        self._warned: set[tuple[int, int]] = set()
        self._lost_rows: dict[int, tuple[int, float]] = {}
        self._advanced = (started, 0)
        self._saved_at = time.monotonic()
        self._unrecorded = False
        self.newest: Snapshot | None = None

    def run(self) -> Outcome:
        """Trains until a stop condition, a signal or a failure.

        Raises:
            RunFailed: a role's own code raised, the learner died, no restart was left, or nothing moved.
        """
        reason = None
        try:
            while reason is None:
                self._grant()
                ready = self._engine.wait(list(self._fleet.credits), _WAIT_SECONDS)
                for ref in ready:
                    self._complete(ref)
                self._tick(idle=not ready)
                reason = self._reason_to_stop()
            return self._finish(reason)
        except (RunFailed, EngineError) as error:
            self._event(f"failed: {error}")
            with contextlib.suppress(EngineError):  # the weights may have died with the learner's machine
                self._save_latest()
            raise RunFailed(str(error)) from None

    def _ledger(self) -> Ledger:
        return Ledger(
            inserted=self._totals.inserted_rows,
            inserting=self._fleet.outstanding("rollout"),
            sampled=self._figures.version * self._batch_size,
            sampling=self._fleet.outstanding("learn"),
        )

    def _grant(self) -> None:
        for depth in range(self._credits_each):
            for actor in self._fleet.actors:
                idle = actor.pid is not None and len(actor.in_flight) <= depth
                if idle and (self._refills() or self._pacing.may_insert(self._ledger(), self._chunk_rows)):
                    self._grant_rollout(actor)
        learner = self._fleet.learner
        while learner.pid is not None and len(learner.in_flight) < self._credits_each:
            updates = self._next_chunk_updates()
            if updates == 0 or not self._pacing.may_sample(self._ledger(), updates * self._batch_size):
                break
            if self._held_rows() < self._least_rows:
                break
            credit = Credit("learn", learner, rows=updates * self._batch_size)
            report, weights = self._fleet.grant(credit, "learn", updates, returns=2)
            self._learn_weights[report] = weights
        self._grant_evaluation()

    def _held_rows(self) -> int:
        """Rows that can be sampled now: a shard that was lost counts again once it is back."""
        return sum(
            status.count
            for status in self._totals.living()
            if status.incarnation == self._fleet.shards[status.shard].incarnation
        )

    def _refills(self) -> bool:
        """Whether acting must go on whatever pacing says: a lost shard left too few rows to sample."""
        return self._held_rows() + self._fleet.outstanding("rollout") < self._least_rows

    def _grant_rollout(self, actor: Member) -> None:
        credit = Credit("rollout", actor, rows=self._chunk_rows)
        self._fleet.grant(
            credit, "rollout", self._chunk_steps, self._figures.version, self._weights, self._totals.env_steps
        )

    def _next_chunk_updates(self) -> int:
        """A whole chunk, or what is left of stop.updates."""
        limit = self._config.stop.updates
        if limit is None:
            return self._chunk_updates
        granted = self._figures.version + self._fleet.outstanding("learn") // self._batch_size
        return max(0, min(self._chunk_updates, limit - granted))

    def _grant_evaluation(self, *, due: bool = False) -> bool:
        """Grants the next evaluation if the evaluator is free; True if one was granted."""
        evaluator = self._fleet.evaluator
        if evaluator.pid is None or evaluator.in_flight or self._weights is None:
            return False
        request = self._judge.next_request(self._figures.version, due=due)
        if request is None:
            return False
        weights = self._candidate_weights if request.confirms else self._weights
        self._candidate_weights = weights
        credit = Credit("evaluate", evaluator, evaluation=request, weights=weights)
        self._fleet.grant(credit, "evaluate", request.version, weights, request.seed_domain, request.episodes)
        return True

    def _complete(self, ref: Ref) -> None:
        credit = self._fleet.settle(ref)
        if credit is None:
            return
        try:
            value = self._engine.get(ref)
        except (RoleDied, ObjectLost) as error:
            if credit.evaluation is not None:
                self._judge.lost(credit.evaluation)
            self._bury(credit.member, error)
            return
        except EngineError as error:
            raise RunFailed(
                f"{error.message}\n{error.role} raised the error above; the run has ended."
            ) from None
        if credit.kind == "presence":
            try:
                require_same_root(value)
            except ImportError as error:
                raise RunFailed(f"{credit.member.handle.name}: {error}") from None
            credit.member.presence = value
            # Coming up takes its time, on a busy machine or a cluster without free CPUs.
            self._advanced = (time.monotonic(), self._advanced[1])
        elif credit.kind == "rollout":
            self._take_rollout(credit.member, *value)
        elif credit.kind == "learn":
            self._take_learning(ref, credit, value)
        elif credit.kind == "status":
            self._totals.take([value])
        elif credit.kind == "recovery":
            self._take_recovery(credit.member, *value)
        elif credit.kind == "unconfirmed":
            credit.member.rows_unacknowledged, statuses = value
            self._totals.take(statuses)
        elif credit.kind == "replace_shard":
            if credit.member.kind == "actor":
                credit.member.rows_unacknowledged = value
        elif credit.evaluation is not None:
            self._take_evaluation(credit.evaluation, value, credit.weights)

    def _take_rollout(self, actor: Member, report: RolloutReport, rows_unacknowledged: int) -> None:
        actor.rows_unacknowledged = rows_unacknowledged
        self._totals.take(report.statuses)
        self._figures.take_rollout(report)

    def _take_learning(self, ref: Ref, credit: Credit, report: LearnReport) -> None:
        self._figures.take_learning(report)
        self._weights = self._learn_weights.pop(ref)
        self._totals.take(report.statuses)
        if report.updates * self._batch_size < credit.rows:
            # The chunk ended early because a shard was lost: find out which.
            self._fleet.ask_shards()

    def _take_evaluation(
        self, request: EvaluationRequest, report: EvaluationReport, weights: Ref | None
    ) -> None:
        self._figures.take_evaluation(report)
        self._record(self._run_dir.write_evaluation, request, report)
        if self._judge.take(request, report) and weights is not None and self._judge.best is not None:
            best = self._judge.best
            flat: np.ndarray = self._engine.get(weights)
            facts = {"version": str(best.version), "return_mean": f"{best.score:.6g}"}
            self._record(self._run_dir.write_weights, "best", flat, facts)
            self._event(
                f"version {best.version} is the best so far: greedy return {best.score:.1f}, confirmed"
            )

    def _take_recovery(self, shard: Member, report: RecoveryReport | None, status: ShardStatus) -> None:
        """A replaced shard is up: everybody calls it from now on, and the user learns what is left."""
        self._totals.take([status])
        self._fleet.introduce(shard)
        rows, mass = self._lost_rows.pop(shard.index, (0, 0.0))
        if report is None:
            self._event(
                f"{shard.handle.name} is back and empty: {rows:,} transitions (mass {mass:.4g}) are lost"
            )
            return
        torn = (
            f"; {report.torn_bytes:,} bytes of an unfinished record were cut off" if report.torn_bytes else ""
        )
        self._event(
            f"{shard.handle.name} is back with {status.count:,} transitions (mass {status.mass:.4g}) "
            f"from its journal{torn}"
        )
        for damaged in report.damaged:
            self._event(
                f"warning: {shard.handle.name}, journal segment {damaged.name}: {damaged.reason}; skipped "
                f"{damaged.skipped_records:,} records and {damaged.skipped_bytes:,} bytes"
            )

    def _bury(self, dead: Member, error: EngineError) -> None:
        """Replaces a dead actor, shard or evaluator within the budget; the learner's death ends the run."""
        if dead.kind == "learner":
            raise RunFailed(
                f"{dead.handle.name} (process {dead.pid}) died: {error.message.splitlines()[0]} "
                f"What was learned up to version {self._figures.version} is in {self._run_dir.path}."
            )
        if self._figures.restarts >= self._config.run.restarts:
            raise RunFailed(
                f"{dead.handle.name} died, and run.restarts = {self._config.run.restarts} "
                f"replacements were used up: {error.message}"
            )
        self._figures.restarts += 1
        held = ""
        if dead.kind == "shard":
            last = [status for status in self._totals.living() if status.shard == dead.index]
            rows, mass = self._lost_rows[dead.index] = (last[0].count, last[0].mass) if last else (0, 0.0)
            held = f" with {rows:,} transitions (mass {mass:.4g})"
        fresh = self._fleet.replace(dead)
        self._event(
            f"{dead.handle.name} (process {dead.pid}) died{held}; replaced by incarnation "
            f"{fresh.incarnation}, {self._config.run.restarts - self._figures.restarts} replacements left"
        )

    def _tick(self, *, idle: bool) -> None:
        now = time.monotonic()
        if now - self._asked_at >= _ASK_SHARDS_SECONDS:
            self._asked_at = now
            self._fleet.ask_shards()
            self._fleet.ask_idle_actors()
            self._warn_of_journals()
        if self._figures.interval_seconds(now) >= self._config.metrics.every_seconds:
            self._snapshot(now)
        if now - self._saved_at >= self._config.checkpoint.weights_every_seconds:
            self._save_latest()
        moved = self._totals.inserted_rows + self._figures.version
        if moved != self._advanced[1]:
            self._advanced = (now, moved)
        elif idle and now - self._advanced[0] > self._config.run.stall_seconds:
            self._fail_stalled()

    def _snapshot(self, now: float) -> Snapshot:
        self.newest = snapshot = self._figures.snapshot(
            now,
            self._ledger(),
            self._pacing,
            self._totals.env_steps,
            self._totals.living(),
            self._judge.best,
        )
        self._record(self._run_dir.write_snapshot, snapshot)
        self._observer.figures(snapshot)
        return snapshot

    def _warn_of_journals(self) -> None:
        """Says once of each shard that its journal does not follow any more."""
        for status in self._totals.living():
            shard = (status.shard, status.incarnation)
            if status.journal_error is not None and shard not in self._warned:
                self._warned.add(shard)
                self._event(
                    f"warning: shard {status.shard} goes on in memory only, its journal is incomplete: "
                    f"{status.journal_error}"
                )

    def _event(self, text: str) -> None:
        run_seconds = time.monotonic() - self._started
        self._record(self._run_dir.write_event, text, run_seconds)
        self._observer.event(text, run_seconds)

    def _fail_stalled(self) -> None:
        waiting = [
            f"  {member.handle.name} (process {member.pid}): {len(member.in_flight)} calls in flight"
            if member.presence
            else f"  {member.handle.name}: has not come up; are there free CPUs for it?"
            for member in self._fleet.members
        ]
        # Every role answers SIGUSR1 by writing its stack to the log folder; it works while the role hangs.
        for member in self._fleet.members:
            request_stack(member.presence)
        raise RunFailed(
            f"nothing was inserted or learned for run.stall_seconds = {self._config.run.stall_seconds:g}:\n"
            + "\n".join(waiting)
            + f"\nThe stacks of the roles on this machine are in {self._run_dir.path / 'logs'}."
        )

    def _reason_to_stop(self) -> str | None:
        stop = self._config.stop
        asked = self._stop_requested()
        if asked is not None:
            return asked
        if self._judge.solved:
            return f"the target return {stop.target_return:g} was reached and confirmed"
        if stop.env_steps is not None and self._totals.env_steps >= stop.env_steps:
            return f"stop.env_steps = {stop.env_steps} reached"
        if stop.updates is not None and self._figures.version >= stop.updates:
            return f"stop.updates = {stop.updates} reached"
        if stop.seconds is not None and time.monotonic() - self._started >= stop.seconds:
            return f"stop.seconds = {stop.seconds:g} reached"
        return None

    def _finish(self, reason: str) -> Outcome:
        if self._stop_requested() is None and not self._judge.solved:
            self._evaluate_last()
        saved = self._save_latest()
        final = self._snapshot(time.monotonic())
        best = self._judge.best
        if not saved:
            raise RunFailed(f"{reason}, but the newest weights could not be written to {self._run_dir.path}")
        self._event(f"end: {reason}")
        return Outcome(
            reason=reason,
            solved=self._judge.solved,
            best_version=best.version if best else None,
            best_return_mean=best.score if best else None,
            final=final,
            restarts=self._figures.restarts,
        )

    def _evaluate_last(self) -> None:
        """Gives the last version its chance to be the best, once the learner has come to rest."""
        patience_seconds = max(self._config.run.stall_seconds, 10 * self._figures.longest_evaluation_seconds)
        deadline = time.monotonic() + patience_seconds
        rested = self._wait_for(lambda: not self._fleet.learner.in_flight, deadline)
        rested = rested and self._wait_for(lambda: not self._fleet.evaluator.in_flight, deadline)
        while rested and self._grant_evaluation(due=True):
            deadline = time.monotonic() + patience_seconds
            rested = self._wait_for(lambda: not self._fleet.evaluator.in_flight, deadline)
        if not rested and self._stop_requested() is None:
            self._event(f"the last evaluation did not end within {patience_seconds:g} s and is left out")

    def _wait_for(self, done: Callable[[], bool], deadline: float) -> bool:
        """Handles completions until done() or the deadline or a request to stop; whether it was done()."""
        while not done() and self._stop_requested() is None and time.monotonic() < deadline:
            for ref in self._engine.wait(list(self._fleet.credits), _WAIT_SECONDS):
                self._complete(ref)
        return done()

    def _save_latest(self) -> bool:
        """Whether the newest weights, if there are any, are in the run directory."""
        self._saved_at = time.monotonic()
        if self._weights is None:
            return True
        flat: np.ndarray = self._engine.get(self._weights)
        facts = {"version": str(self._figures.version)}
        return self._record(self._run_dir.write_weights, "latest", flat, facts)

    def _record(
        self, write: Callable[_Written, None], *args: _Written.args, **kwargs: _Written.kwargs
    ) -> bool:
        """Writes to the run directory; where that fails (a full disk) says so once and training goes on."""
        try:
            write(*args, **kwargs)
        except OSError as error:
            if not self._unrecorded:
                self._unrecorded = True
                text = (
                    f"warning: {self._run_dir.path} cannot be written ({error}); training goes on unrecorded"
                )
                self._observer.event(text, time.monotonic() - self._started)
            return False
        return True
