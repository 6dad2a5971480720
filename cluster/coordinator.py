"""The coordinator: one thread that grants credits, waits, and handles one completion after another.

Owns pacing, weight versions, restarts, evaluation and the end of a run; must not import ray or torch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.core import EnvRestart, EnvSpec, EvaluationReport, RolloutReport
from cluster.checkpoints.checkpoint import SavedCheckpoint
from cluster.checkpoints.recovery import Parts, Recovery
from cluster.checkpoints.resume import Resumed
from cluster.control.evaluation import EvaluationRequest, ModelSelection
from cluster.control.pacing import Ledger, Pacing, slack_samples
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.engines.engine import Engine, EngineError, ObjectLost, Ref, RoleDied, RoleOutOfMemory
from cluster.engines.process_info import require_same_code
from cluster.engines.stacks import end_process, request_stack, stack_of
from cluster.metrics.counters import Counters, RestartCause
from cluster.metrics.snapshot import Snapshot
from cluster.metrics.usage import MachineMeter
from cluster.record.logs import append
from cluster.record.recorder import Recorder
from cluster.record.run_dir import RunDir
from cluster.runtime.fleet import Credit, Fleet, Member
from cluster.settings.resolved import ResolvedConfig
from learner.core import LearnReport

_WAIT_SECONDS = 0.25
_ASK_SHARDS_SECONDS = 0.5
_ASK_LOGS_SECONDS = 5.0
_ASK_MACHINES_SECONDS = 3.0
_LAST_LOGS_SECONDS = 2.0
_GONE_TOGETHER_SECONDS = 30.0
# Two chunks each: one in work, one waiting, so that nobody idles while the coordinator thinks.
_CREDITS_EACH = 2


class RunFailed(Exception):  # noqa: N818 - the outcome of a run
    """The run cannot go on; the message begins with the traceback or fact that ended it.

    role: whose failure it was ("actor 3"), where it was one role's; logs: the folder of the run's logs.
    """

    def __init__(self, message: str, role: str | None = None, logs: Path | None = None) -> None:
        super().__init__(message)
        self.role = role
        self.logs = logs


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
        config: ResolvedConfig,
        spec: EnvSpec,
        run_dir: RunDir,
        recorder: Recorder,
        *,
        learner_gpus: float,
        stop_requested: Callable[[], str | None],
        started: float,
        resumed: Resumed | None = None,
        initial_weights: np.ndarray | None = None,
        diagnosis: Diagnosis | None = None,
        counters: Counters | None = None,
    ) -> None:
        """started: on the monotonic clock, when the run began; a resumed one goes on from what is given.

        diagnosis, counters: those of the coordinator before, where there was one in this process.
        initial_weights: [P] float32 that a run begins with which goes on from nothing.
        """
        self._engine = engine
        self._config = config
        self._run_dir = run_dir
        self._stop_requested = stop_requested
        self._started = started
        self._fleet = Fleet(
            engine,
            config,
            spec,
            run_dir.logs,
            run_dir.replay,
            learner_gpus=learner_gpus,
            run_started_at=time.time() - (time.monotonic() - started),
            incarnations=resumed.incarnations if resumed else {},
        )
        self._serial = config.run.runtime == "serial"
        before = resumed.manifest.run if resumed else None
        self._selection = ModelSelection(
            config.evaluation, config.stop.target_return, before.selection if before else None
        )
        self._chunk_steps = config.actors.steps_per_chunk
        self._chunk_transitions = config.actors.transitions_per_chunk
        self._chunk_updates = config.learner.updates_per_chunk
        self._batch_size = config.learner.batch_size
        # Half of a shard so small that rows leave it early: such a batch only repeats more of them.
        self._least_transitions = min(self._batch_size, config.replay.capacity // 2)
        # The serial runtime runs each call where it is made: a second credit would only add policy lag.
        self._credits_each = 1 if self._serial else _CREDITS_EACH
        # A chunk stays outstanding until a shard confirms it, and its actor says so with its next chunk only.
        unacknowledged = 0 if self._serial else config.actors.pushes_in_flight
        rollout_transitions = (
            (self._credits_each + unacknowledged) * len(self._fleet.actors) * self._chunk_transitions
        )
        learn_transitions = self._credits_each * self._chunk_updates * self._batch_size
        self._pacing = Pacing(
            config.pacing.samples_per_insert,
            config.pacing.learning_starts,
            slack_samples(config.pacing.samples_per_insert, rollout_transitions, learn_transitions),
        )
        self._weights: Ref | None = None
        self._candidate_weights: Ref | None = None
        self._learn_weights: dict[Ref, Ref] = {}
        self._usage = MachineMeter()
        self._counters = counters or Counters(
            started=started, discount=config.actors.discount, num_actors=len(self._fleet.actors)
        )
        if before:
            self._counters.resume(before.counters)
        self._counters.begin_interval(time.monotonic())
        self._deaths = 0
        # Of each other machine: when it last seemed to go, and which roles went along.
        self._gone: dict[str, tuple[float, set[str]]] = {}
        self._leaving: frozenset[str] = frozenset()
        self._recorder = recorder
        self._diagnosis = diagnosis or Diagnosis(config)
        parts = Parts(
            engine,
            config,
            self._fleet,
            self._counters,
            self._selection,
            run_dir,
            self._recorder,
            started,
            self._restored,
        )
        self._recovery = Recovery(parts, resumed=resumed, initial_weights=initial_weights)
        self._asked_at = self._asked_logs_at = self._asked_machines_at = time.monotonic()
        self._advanced = (started, 0)
        self._saved_at = time.monotonic()
        self.newest: Snapshot | None = None

    def run(self) -> Outcome | SavedCheckpoint:
        """Trains until a stop condition, a signal or a failure.

        In the serial runtime also until a checkpoint is due: the run is then to go on from that, so that one
        that was interrupted ends as this one does.

        Raises:
            RunFailed: a role's own code raised, no replacement was left, or nothing moved.
        """
        reason = None
        turn = time.monotonic()
        try:
            while reason is None:
                self._grant()
                asked = time.monotonic()
                ready = self._engine.wait(list(self._fleet.credits), _WAIT_SECONDS)
                waited = time.monotonic()
                for ref in ready:
                    self._complete(ref)
                self._tick(idle=not ready)
                now = time.monotonic()
                self._counters.take_wait(waited - asked, now - turn)
                turn = now
                reason = self._reason_to_stop()
                if reason is None and self._serial and self._recovery.checkpoint_is_due():
                    committed = self._rest_and_checkpoint()
                    if committed is not None:
                        return committed
            return self._finish(reason)
        except (RunFailed, EngineError) as error:
            self._recorder.event("failed", str(error))
            with contextlib.suppress(EngineError):  # the weights may have died with the learner's machine
                self._save_latest()
            self._collect_logs()
            raise RunFailed(str(error), error.role, self._run_dir.logs) from None
        finally:
            self._recovery.close()

    def _ledger(self) -> Ledger:
        return Ledger(
            inserted=self._counters.shards.inserted_transitions,
            inserting=self._fleet.outstanding("rollout"),
            sampled=self._counters.sampled_transitions,
            sampling=self._fleet.outstanding("learn"),
        )

    def _grant(self) -> None:
        if self._recovery.restoring:
            return
        for depth in range(self._credits_each):
            for actor in self._fleet.actors:
                idle = actor.pid is not None and len(actor.in_flight) <= depth
                if idle and (
                    self._refills() or self._pacing.may_insert(self._ledger(), self._chunk_transitions)
                ):
                    self._grant_rollout(actor)
        learner = self._fleet.learner
        while learner.pid is not None and self._fleet.granted(learner, "learn") < self._credits_each:
            updates = self._next_chunk_updates()
            if updates == 0 or not self._pacing.may_sample(self._ledger(), updates * self._batch_size):
                break
            if self._held_transitions() < self._least_transitions:
                break
            credit = Credit("learn", learner, rows=updates * self._batch_size)
            report, weights = self._fleet.grant(credit, "learn", updates, returns=2)
            self._learn_weights[report] = weights
        # Initial weights are worth an evaluation of their own; random ones are not.
        self._grant_evaluation(due=self._recovery.starts_from_weights and self._counters.version == 0)

    def _held_transitions(self) -> int:
        """Rows that can be sampled now: a shard that was lost counts again once it is back."""
        return sum(
            status.count
            for status in self._counters.shards.living()
            if status.incarnation == self._fleet.shards[status.shard].incarnation
        )

    def _refills(self) -> bool:
        """Whether acting must go on whatever pacing says: a lost shard left too few rows to sample."""
        return self._held_transitions() + self._fleet.outstanding("rollout") < self._least_transitions

    def _grant_rollout(self, actor: Member) -> None:
        credit = Credit("rollout", actor, rows=self._chunk_transitions)
        self._fleet.grant(
            credit,
            "rollout",
            self._chunk_steps,
            self._counters.version,
            self._weights,
            self._counters.shards.env_steps,
        )

    def _next_chunk_updates(self) -> int:
        """A whole chunk, or what is left until stop.updates or a checkpoint that is due at an update."""
        granted = self._counters.version + self._fleet.outstanding("learn") // self._batch_size
        updates = self._chunk_updates
        if self._config.stop.updates is not None:
            updates = min(updates, self._config.stop.updates - granted)
        every = self._config.checkpoint.every_updates
        if every is not None and self._serial:
            updates = min(updates, every - granted % every)
        return max(0, updates)

    def _grant_evaluation(self, *, due: bool = False) -> bool:
        """Grants the next evaluation if the evaluator is free; True if one was granted."""
        evaluator = self._fleet.evaluator
        if evaluator.pid is None or evaluator.in_flight or self._weights is None:
            return False
        request = self._selection.next_request(self._counters.version, due=due)
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
        if credit.kind == "log":
            self._take_log(ref, credit.member)
            return
        try:
            value = self._engine.get(ref)
        except (RoleDied, ObjectLost) as error:
            if credit.evaluation is not None:
                self._selection.lost(credit.evaluation)
                if isinstance(error, ObjectLost):
                    self._selection.withdraw()
            if isinstance(error, ObjectLost) and credit.kind in ("rollout", "evaluate"):
                # The weights died with the learner's machine; its replacement brings others.
                self._weights = None
            else:
                self._bury(credit.member, error)
            return
        except EngineError as error:
            raise RunFailed(
                f"{error.message}\n{error.role} raised the error above; the run has ended.", error.role
            ) from None
        if credit.kind == "process_info":
            try:
                require_same_code(value)
            except ImportError as error:
                name = credit.member.handle.name
                raise RunFailed(f"{name}: {error}", name) from None
            credit.member.process_info = value
            credit.member.machine = self._engine.machine_of(credit.member.handle)
            # Coming up takes its time, on a busy machine or a cluster without free CPUs.
            self._advanced = (time.monotonic(), self._advanced[1])
        elif credit.kind == "rollout":
            self._take_rollout(credit.member, *value)
        elif credit.kind == "learn":
            self._take_learning(ref, credit, value)
        elif credit.kind == "status":
            self._counters.shards.take([value])
        elif credit.kind == "recovery":
            self._recovery.take_recovery(credit.member, *value)
        elif credit.kind == "state":
            self._recovery.take_state(ref, value)
        elif credit.kind == "restore":
            self._weights = self._recovery.take_restored(ref, credit.member, value)
        elif credit.kind == "seal":
            self._recovery.take_seal(credit.member, value)
        elif credit.kind == "unacknowledged":
            credit.member.unacknowledged_transitions, statuses = value
            self._counters.shards.take(statuses)
        elif credit.kind == "replace_shard":
            if credit.member.kind == "actor":
                credit.member.unacknowledged_transitions = value
        elif credit.evaluation is not None:
            self._take_evaluation(credit.evaluation, value, credit.weights)

    def _take_rollout(self, actor: Member, report: RolloutReport, unacknowledged_transitions: int) -> None:
        actor.unacknowledged_transitions = unacknowledged_transitions
        self._counters.take_rollout(report)
        self._take_env_restarts(actor, report.env_restarts)
        if report.memory_excess:
            restart = EnvRestart("memory", None, f"its processes hold {report.memory_excess}")
            self._replace_actor(actor, "memory", restart)

    def _take_learning(self, ref: Ref, credit: Credit, report: LearnReport) -> None:
        self._counters.take_learning(report, self._batch_size)
        self._weights = self._learn_weights.pop(ref)
        for note in report.notes:
            self._recorder.info(note)
        if report.updates * self._batch_size < credit.rows:
            # The chunk ended early because a shard was lost: find out which.
            self._fleet.ask_shards()

    def _take_evaluation(
        self, request: EvaluationRequest, report: EvaluationReport, weights: Ref | None
    ) -> None:
        self._counters.take_evaluation(report)
        self._take_env_restarts(self._fleet.evaluator, report.env_restarts)
        self._fleet.timeouts.evaluated(report)
        self._recorder.evaluation(request, report)
        try:
            # Before it is the best: the machine that holds the weights may be gone.
            flat = self._engine.get(weights) if request.confirms and weights is not None else None
        except ObjectLost:
            self._selection.withdraw()
            return
        if self._selection.take(request, report) and flat is not None and self._selection.best is not None:
            self._recorder.best(self._selection.best, flat)

    def _bury(self, dead: Member, error: EngineError, frozen_seconds: float | None = None) -> None:
        """Replaces a dead role within the budget, of which a machine that takes its roles along costs one.

        frozen_seconds: how long it was silent, where that is why it had to die.
        """
        self._deaths += not self._went_with_its_machine(dead, time.monotonic())
        left = self._config.run.restarts - self._deaths
        if left < 0:
            raise RunFailed(
                f"{dead.handle.name} died, and run.restarts = {self._config.run.restarts} "
                f"replacements were used up: {error.message}",
                dead.handle.name,
            )
        cause: RestartCause = "process"
        how = "died"
        if frozen_seconds is not None:
            cause, how = "frozen", f"did not answer for {frozen_seconds:.0f} s and was killed"
        elif isinstance(error, RoleOutOfMemory):
            cause, how = "memory", "was ended because its machine ran out of memory"
        elif isinstance(error, ObjectLost):
            cause = "object"
        fresh = self._replace(dead, cause, how, f", {left} replacements left")
        fresh.machine = dead.machine  # until it is up
        if dead.kind == "learner":
            self._learn_weights.clear()
            if not self._recovery.give_state(fresh):
                self._weights = None

    def _end_frozen(self) -> None:
        """Ends and replaces a role that gives no sign of life any more."""
        frozen = self._fleet.frozen()
        if frozen is None:
            return
        member, seconds = frozen
        if member.kind == "actor":
            stacks = stack_of(member.process_info, self._run_dir.logs, member.handle.name)
            description = f"it did not return from a chunk for {seconds:.0f} s"
            self._replace_actor(member, "frozen", EnvRestart("hang", None, f"{stacks}{description}"))
            return
        # Ray would first ask a process that is stopped, and wait.
        end_process(member.process_info)
        for credit in map(self._fleet.credits.__getitem__, member.in_flight):
            if credit.evaluation is not None:
                self._selection.lost(credit.evaluation)
        self._bury(member, RoleDied(member.handle.name, f"it did not answer for {seconds:.0f} s"), seconds)

    def _replace_actor(self, actor: Member, cause: RestartCause, restart: EnvRestart) -> None:
        """Ends and replaces an actor because of its environments."""
        end_process(actor.process_info)
        self._take_env_restarts(actor, [restart])
        self._replace(actor, cause, "was ended")

    def _replace(self, dead: Member, cause: RestartCause, how: str, left: str = "") -> Member:
        """Puts the next incarnation in the place of a role that is gone, and says so."""
        self._counters.take_restart(dead.kind, cause)
        held = self._recovery.dies(dead)
        fresh = self._fleet.replace(dead)
        self._recorder.info(
            f"{dead.handle.name} (process {dead.pid}) {how}{held}; replaced by incarnation "
            f"{fresh.incarnation}{left}"
        )
        return fresh

    def _take_env_restarts(self, member: Member, restarts: Iterable[EnvRestart]) -> None:
        """Counts environments that were made anew. Raises RunFailed where that happened too often."""
        name, budget = member.handle.name, self._config.actors.env_restarts
        for restart in restarts:
            self._counters.take_env_restart(restart.cause)
            left = budget - self._counters.env_restarts
            if left < 0:
                ends = "raised the error above" if restart.cause == "raise" else "is where that happened"
                raise RunFailed(
                    f"{restart.description}\n{name} {ends}; actors.env_restarts = {budget} were used up, "
                    "and the run has ended.",
                    name,
                )
            which = "its environments" if restart.lane is None else f"environment {restart.lane}"
            self._recorder.info(
                f"{name}: {which} made anew ({restart.cause}: {restart.description.strip().splitlines()[-1]})"
                f", {left} restarts of environments left"
            )

    def _notice_leaving(self) -> None:
        """Saves what there is before machines go that say so."""
        leaving = self._engine.machines_leaving()
        news, self._leaving = leaving - self._leaving, leaving
        roles = [member.handle.name for member in self._fleet.members if member.machine in news]
        if roles:
            self._recovery.checkpoint_soon(f"a machine is about to go, with {', '.join(roles)}")

    def _went_with_its_machine(self, dead: Member, now: float) -> bool:
        """Whether another role of the same other machine has just gone, and this one had not yet."""
        since, roles = self._gone.get(dead.machine, (-math.inf, set()))
        # One that never came up may have been sent to that very machine, before Ray knew that it is gone.
        new = dead.process_info is None or dead.handle.name not in roles
        together = new and now - since < _GONE_TOGETHER_SECONDS
        if not dead.machine or not together:
            self._gone[dead.machine] = (now, {dead.handle.name})
            return False
        roles.add(dead.handle.name)
        return True

    def _restored(self) -> None:
        """All roles are as they were: the run goes on, at its pace of before."""
        self._counters.begin_interval(time.monotonic())
        # Rows newer than the learner's state were learned from by one that is lost.
        self._counters.sampled_transitions += self._pacing.surplus_samples(self._ledger())

    def _rest_and_checkpoint(self) -> SavedCheckpoint | None:
        """The serial runtime's cut, between two lives of the run."""
        while self._fleet.credits:
            for ref in self._engine.wait(list(self._fleet.credits), 0.0):
                self._complete(ref)
        return self._recovery.checkpoint_now(self._complete)

    def _tick(self, *, idle: bool) -> None:
        now = time.monotonic()
        self._fleet.clock.look(now)
        if not self._serial:
            self._end_frozen()
        if now - self._asked_machines_at >= _ASK_MACHINES_SECONDS:
            self._asked_machines_at = now
            self._notice_leaving()
        self._recovery.tick(now)
        if now - self._asked_at >= _ASK_SHARDS_SECONDS:
            self._asked_at = now
            self._fleet.ask_shards()
            self._fleet.ask_idle_actors()
            for status in self._counters.shards.living():
                self._recorder.journal(status)
        if now - self._asked_logs_at >= _ASK_LOGS_SECONDS:
            self._asked_logs_at = now
            self._fleet.ask_logs()
            self._fleet.spread_ladder()
        # Before all roles are back their totals are not known.
        due = self._counters.interval_seconds(now) >= self._config.metrics.every_seconds
        if due and not self._recovery.restoring:
            self._snapshot(now)
        if now - self._saved_at >= self._config.checkpoint.weights_every_seconds:
            self._save_latest()
        moved = self._counters.shards.inserted_transitions + self._counters.version
        if moved != self._advanced[1]:
            self._advanced = (now, moved)
        elif idle and now - self._advanced[0] > self._config.run.stall_seconds:
            self._fail_stalled()

    def _snapshot(self, now: float) -> Snapshot:
        measured = self._counters.snapshot(
            now,
            ledger=self._ledger(),
            pacing=self._pacing,
            best=self._selection.best,
            fleet=self._fleet.figures(),
            usage=self._usage.due(),
        )
        diagnosed = self._diagnosis.take(measured)
        self.newest = diagnosed.snapshot
        for finding in diagnosed.begun:
            self._recorder.warning(finding.text)
        for finding in diagnosed.over:
            self._recorder.info(f"over: {finding.title}, which began at update {finding.since_updates:,}")
        self._recorder.snapshot(diagnosed.snapshot)
        return diagnosed.snapshot

    def _take_log(self, ref: Ref, member: Member) -> None:
        # A role that cannot tell any more shows by its other calls.
        with contextlib.suppress(EngineError):
            append(self._run_dir.logs, member.handle.name, self._engine.get(ref))

    def _collect_logs(self) -> None:
        """The last lines of roles on other machines, as far as they come soon."""
        self._fleet.ask_logs()
        deadline = time.monotonic() + _LAST_LOGS_SECONDS
        while time.monotonic() < deadline:
            asked = [ref for ref, credit in self._fleet.credits.items() if credit.kind == "log"]
            if not asked:
                return
            for ref in self._engine.wait(asked, _WAIT_SECONDS):
                self._complete(ref)

    def _fail_stalled(self) -> None:
        waiting = [
            f"  {member.handle.name} (process {member.pid}): {len(member.in_flight)} calls in flight"
            if member.process_info
            else f"  {member.handle.name}: has not come up; are there free CPUs for it?"
            for member in self._fleet.members
        ]
        # Every role answers SIGUSR1 by writing its stack to the log folder; it works while the role hangs.
        for member in self._fleet.members:
            request_stack(member.process_info)
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
        if self._selection.solved:
            return f"the target return {stop.target_return:g} was reached and confirmed"
        if stop.env_steps is not None and self._counters.shards.env_steps >= stop.env_steps:
            return f"stop.env_steps = {stop.env_steps} reached"
        if stop.updates is not None and self._counters.version >= stop.updates:
            return f"stop.updates = {stop.updates} reached"
        if stop.seconds is not None and time.monotonic() - self._started >= stop.seconds:
            return f"stop.seconds = {stop.seconds:g} reached"
        return None

    def _finish(self, reason: str) -> Outcome:
        saved, version = self._save_latest(), self._counters.version
        if self._stop_requested() is None and not self._selection.solved:
            self._evaluate_last()
        self._recovery.last_checkpoint(self._complete)
        if self._counters.version >= version:  # one that died meanwhile went on from an older one
            saved = self._save_latest()
        final = self._snapshot(time.monotonic())
        best = self._selection.best
        if not saved:
            raise RunFailed(f"{reason}, but the newest weights could not be written to {self._run_dir.path}")
        self._collect_logs()
        self._recorder.event("ended", reason)
        return Outcome(
            reason=reason,
            solved=self._selection.solved,
            best_version=best.version if best else None,
            best_return_mean=best.score if best else None,
            final=final,
            restarts=self._counters.restarts,
        )

    def _evaluate_last(self) -> None:
        """Gives the last version its chance to be the best, once the learner has come to rest."""
        timeout_seconds = max(self._config.run.stall_seconds, 10 * self._counters.longest_evaluation_seconds)
        deadline = time.monotonic() + timeout_seconds
        rested = self._wait_for(lambda: not self._fleet.learner.in_flight, deadline)
        rested = rested and self._wait_for(lambda: not self._fleet.evaluator.in_flight, deadline)
        while rested and self._grant_evaluation(due=True):
            deadline = time.monotonic() + timeout_seconds
            rested = self._wait_for(lambda: not self._fleet.evaluator.in_flight, deadline)
        if not rested and self._stop_requested() is None:
            self._recorder.info(
                f"the last evaluation did not end within {timeout_seconds:g} s and is left out"
            )

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
        try:
            flat: np.ndarray = self._engine.get(self._weights)
        except ObjectLost:
            self._weights = None
            return False
        return self._recorder.latest(self._counters.version, flat)
