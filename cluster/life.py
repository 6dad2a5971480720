"""One life of a run: from its first turn to its end.

Owns the reasons to stop and what is evaluated and saved at the end; must not import ray or torch.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.checkpoints.checkpoint import SavedCheckpoint
from cluster.control.ends import limit_reached, target_reached
from cluster.coordinator import Coordinator
from cluster.engines.engine import EngineDied, EngineError
from cluster.engines.placement import RoleKind
from cluster.metrics.snapshot import Snapshot
from cluster.runtime.failure import RunFailed
from cluster.runtime.member import Member
from cluster.runtime.run_context import RunContext

_LAST_WORDS_SECONDS = 2.0
_LAST_EVALUATION_SECONDS = 1.0
# A raylet that has lost its agents, as by `ray stop`, serves for ten more.
_LAST_ANSWERS_SECONDS = 8.0
_ALL_ROLES: frozenset[RoleKind] = frozenset(("shard", "learner", "actor", "evaluator"))


@dataclass(frozen=True)
class Outcome:
    """How a run ended. solved: stop.target_return held in both evaluations of the best version."""

    reason: str
    solved: bool
    best_version: int | None
    best_return_mean: float | None
    final: Snapshot
    restarts: int


class Life:
    """Turns of the coordinator until there is a reason to stop, and then the end."""

    def __init__(
        self, context: RunContext, coordinator: Coordinator, stop_requested: Callable[[], str | None]
    ) -> None:
        """stop_requested: polled for a reason to stop, None to continue."""
        self._context, self._config, self._recorder = context, context.config, context.recorder
        self._fleet, self._counters = context.fleet, context.counters
        self._coordinator, self._recovery = coordinator, coordinator.recovery
        self._stop_requested = stop_requested

    def run(self) -> Outcome | SavedCheckpoint:
        """Trains until a stop condition, a signal or a failure.

        In the serial runtime it also ends at each checkpoint; another life continues from there (see Lives).

        Raises:
            RunFailed: a role's own code raised, its restarts were used up, or the run stalled.
        """
        try:
            reason = None
            while reason is None:
                self._coordinator.turn()
                reason = self._reason_to_stop()
                if (
                    reason is None
                    and self._context.engine.deterministic
                    and self._recovery.checkpoint_is_due()
                ):
                    self._coordinator.work_until(lambda: not self._fleet.credits, float("inf"))
                    self._recovery.begin_checkpoint()
                    saved = self._finish_checkpoint()
                    if saved is not None:
                        return saved
            return self._finish(reason)
        except (RunFailed, EngineError) as error:
            self._recorder.event("failed", str(error))
            with contextlib.suppress(EngineError, EngineDied):  # the weights may have died with their machine
                self._coordinator.save_latest()
                self._collect_logs()
            raise RunFailed(str(error), error.role, self._context.run_dir.logs) from None
        except EngineDied as death:
            return self._finish_without_engine(death)
        finally:
            self._recovery.close()

    def _reason_to_stop(self) -> str | None:
        asked = self._stop_requested()
        if asked is None and self._context.selection.solved:
            return target_reached(self._config.stop)
        counters = self._counters
        seconds = counters.clock.seconds(time.monotonic())
        return asked or limit_reached(self._config.stop, counters.shards.env_steps, counters.version, seconds)

    def _finish(self, reason: str) -> Outcome:
        """Evaluates and saves the last version, takes the last checkpoint and snapshot."""
        saved, version = self._coordinator.save_latest(), self._counters.version
        if self._stop_requested() is not None:
            self._coordinator.expendable = frozenset(("actor", "evaluator"))
        elif not self._context.selection.solved:
            self._evaluate_last()
        self._finish_checkpoint()
        if self._recovery.has_unsaved_progress():
            self._recovery.begin_checkpoint(last=True)
            self._finish_checkpoint()
        if self._counters.version >= version:  # a learner that died meanwhile went on from an older one
            saved = self._coordinator.save_latest()
        if not saved:
            path = self._context.run_dir.path
            raise RunFailed(f"{reason}, but the newest weights could not be written to {path}")
        self._fleet.ask_shards(self._counters.shards.take)
        self._coordinator.work_until(self._fleet.shards_are_idle, _LAST_WORDS_SECONDS, watched=False)
        self._collect_logs()
        return _outcome(self._context, reason, self._coordinator.snapshots.take(time.monotonic()))

    def _finish_without_engine(self, death: EngineDied) -> Outcome:
        """Saves what still answers, as roles may live on. Raises RunFailed if no signal had asked to stop."""
        reason = self._stop_requested()
        if reason is not None and not death.objects_gone:
            return self._finish(reason)
        self._coordinator.expendable = _ALL_ROLES
        self._recorder.event("failed", str(death))
        if death.objects_gone:
            self._recovery.use_kept_state()
        else:
            self._coordinator.save_latest()
        if self._recovery.has_unsaved_progress():
            self._recovery.begin_checkpoint()
        self._finish_checkpoint(_LAST_ANSWERS_SECONDS)
        if reason is None:
            raise RunFailed(str(death))
        return _outcome(self._context, reason, self._coordinator.snapshots.take(time.monotonic()))

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
            done = self._coordinator.work_until(
                lambda: not member().in_flight or self._stop_requested() is not None,
                deadline - time.monotonic() if late else seconds,
            )
            return done and self._stop_requested() is None

        idle = wait_idle(lambda: self._fleet.learner)
        if late:
            seconds, deadline = _LAST_EVALUATION_SECONDS, time.monotonic() + _LAST_EVALUATION_SECONDS
        idle = idle and wait_idle(lambda: self._fleet.evaluator)
        while idle and not (late and time.monotonic() + counters.clock.longest_evaluation_seconds > deadline):
            if not self._coordinator.evaluate(due=True):
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
        if not self._coordinator.work_until(
            ended, seconds, watched=not self._coordinator.expendable >= _ALL_ROLES
        ):
            self._recorder.warning("no checkpoint: it was not finished in time; the one before stays")
        return saved

    def _collect_logs(self) -> None:
        """Fetches the last log lines of roles on other machines; waits two seconds at most."""
        self._fleet.ask_logs()
        self._coordinator.work_until(lambda: not self._fleet.logs_asked(), _LAST_WORDS_SECONDS, watched=False)


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
