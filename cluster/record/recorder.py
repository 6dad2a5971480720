"""The recorder: passes events, metrics and weights of a run to its directory and to observers.

Owns the rule that a run goes on if its directory cannot be written, or an observer, callback or tracker
fails; must not import ray or torch.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVarTuple

import numpy as np

from actors.core import EvaluationReport
from cluster.control.evaluation import Best, EvaluationRequest
from cluster.metrics.snapshot import Snapshot
from cluster.record.callbacks import Callback, RunControl
from cluster.record.events import Event, EventKind
from cluster.record.run_dir import RunDir
from cluster.record.run_events import (
    CheckpointSaved,
    Ended,
    Evaluated,
    Measured,
    NewBest,
    RunEvent,
    Started,
)
from cluster.record.trackers import TrackerProcess
from cluster.settings.resolved import ResolvedConfig
from cluster.wording import short, without_numbers
from replay_service.messages import ShardMetrics, ShardStatus

_Args = TypeVarTuple("_Args")
_SLOW_SECONDS = 1.0


class Observer(Protocol):
    """Receives the metrics and events of a run, for instance to display them."""

    def metrics(self, snapshot: Snapshot) -> None:
        """Called every metrics.every_seconds, and once at the end."""

    def event(self, event: Event) -> None:
        """Called for each event: a restart, a new best version, a warning, the end."""


class NewestSnapshot:
    """An observer that keeps the newest snapshot for other threads."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None

    def __call__(self) -> Snapshot | None:
        """The newest snapshot; None before the first."""
        return self._snapshot

    def metrics(self, snapshot: Snapshot) -> None:
        """See Observer."""
        self._snapshot = snapshot

    def event(self, event: Event) -> None:
        """See Observer."""


class Recorder:
    """Writes the reports of a run to its directory and passes snapshots and events on."""

    def __init__(
        self,
        run_dir: RunDir,
        observers: Sequence[Observer],
        started: float,
        callbacks: Sequence[Callback] = (),
        trackers: Sequence[TrackerProcess] = (),
    ) -> None:
        """started: when the run began, on the monotonic clock."""
        self._run_dir = run_dir
        self._observers = tuple(observers)
        self._started = started
        self.control = RunControl()
        """What the callbacks may do to the run."""
        self._callbacks = tuple(callbacks)
        self._trackers = tuple(trackers)
        self._incomplete_journals: set[tuple[int, int]] = set()
        self._refusing: set[int] = set()
        self._warned: set[str] = set()
        self._is_complete = True

    def event(self, kind: EventKind, text: str) -> None:
        """Records an event with the current time, and passes it to observers."""
        event = Event(kind, text, time.monotonic() - self._started)
        self._record(self._run_dir.write_event, event)
        self._notify(lambda observer: observer.event(event))

    def info(self, text: str) -> None:
        """Records an event of kind "info"."""
        self.event("info", text)

    def warning(self, text: str) -> None:
        """Records an event of kind "warning"."""
        self.event("warning", text)

    def warning_once(self, text: str) -> None:
        """Records a warning, unless one with the same words, whatever their numbers, was recorded before."""
        words = without_numbers(text)
        if words not in self._warned:
            self._warned.add(words)
            self.warning(text)

    def begin(self, config: ResolvedConfig) -> None:
        """Tells callbacks and trackers that the run begins or goes on."""
        self._tell(Started(self._run_dir.path, config))

    def snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Records a snapshot of the metrics with those that callbacks added, and returns both together."""
        self._call(Measured(snapshot))
        snapshot = replace(snapshot, custom=self.control.metrics)
        self._record(self._run_dir.write_snapshot, snapshot)
        self._notify(lambda observer: observer.metrics(snapshot))
        self._track(Measured(snapshot))
        return snapshot

    def evaluation(self, request: EvaluationRequest, report: EvaluationReport) -> None:
        """Records an evaluation with every return."""
        self._record(self._run_dir.write_evaluation, request, report)
        self._tell(Evaluated(report.version, tuple(report.returns), tuple(report.lengths), request.confirms))

    def best(self, best: Best, flat: np.ndarray) -> None:
        """Records and reports the best version so far, with its weights [P] float32."""
        facts = {"version": str(best.version), "return_mean": f"{best.score:.6g}"}
        self._record(self._run_dir.write_weights, "best", flat, facts)
        self.info(f"version {best.version} is the best so far: greedy return {short(best.score)}, confirmed")
        self._tell(NewBest(best.version, best.score, self._run_dir.path / "weights" / "best.safetensors"))

    def checkpoint(self, path: Path, env_steps: int) -> None:
        """Tells callbacks and trackers of a checkpoint that was saved in this folder."""
        self._tell(CheckpointSaved(path, env_steps))

    def end(self, reason: str, *, failed: bool) -> None:
        """Tells callbacks and trackers that the run has ended, and closes the trackers."""
        self._tell(Ended(reason, failed))
        for tracker in self._trackers:
            tracker.let_end()
        for tracker in self._trackers:
            if (problem := tracker.close()) is not None:
                self.warning(problem)
        self._trackers = ()

    def abandon_trackers(self) -> None:
        """Lets trackers that `end` has not closed end by themselves."""
        for tracker in self._trackers:
            tracker.let_end()

    def latest(self, version: int, flat: np.ndarray) -> bool:
        """Records the newest weights [P] float32; returns whether they could be written."""
        return self._record(self._run_dir.write_weights, "latest", flat, {"version": str(version)})

    def incarnations(self, started: Mapping[str, int]) -> None:
        """Records, before roles (by name) start as these incarnations, that they do."""
        self._record(self._run_dir.write_incarnations, started)

    def journal(self, status: ShardStatus) -> None:
        """Warns once per shard if its journal has become incomplete."""
        shard = (status.shard, status.incarnation)
        if status.journal_error is not None and shard not in self._incomplete_journals:
            self._incomplete_journals.add(shard)
            self.warning(
                f"shard {status.shard} goes on in memory only, its journal is incomplete: "
                f"{status.journal_error}"
            )

    def refusals(self, shard: int, metrics: ShardMetrics) -> None:
        """Warns once per shard if it refuses what belongs to an earlier life."""
        if (metrics.refused_pushes or metrics.refused_priorities) and shard not in self._refusing:
            self._refusing.add(shard)
            self.warning(
                f"shard {shard} refused {metrics.refused_pushes:,} pushes of replaced actors and "
                f"{metrics.refused_priorities:,} priorities for an earlier life of the shard; "
                "qfleet_refused_*_total count on"
            )

    def _notify(self, tell: Callable[[Observer], None]) -> None:
        """Calls tell with each observer; one that fails is dropped, and a warning names its error."""
        for observer in self._observers:
            try:
                tell(observer)
            # Whatever ails a view must not end a run; rich even raises SystemExit when its pipe breaks.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                self._observers = tuple(other for other in self._observers if other is not observer)
                self.warning(
                    f"{type(observer).__name__} failed ({type(error).__name__}: {error}) and shows nothing "
                    "more; the run goes on: watch it with qfleet status"
                )

    def _tell(self, event: RunEvent) -> None:
        self._call(event)
        self._track(event)

    def _call(self, event: RunEvent) -> None:
        """Calls each callback; one that raises is not called again, and a warning holds its traceback."""
        for callback in self._callbacks:
            name, began = getattr(callback, "__name__", type(callback).__name__), time.monotonic()
            try:
                callback(event, self.control)
            # A mistake in a user's code must not cost the run; a second Ctrl-C (no Exception) still does.
            except (Exception, SystemExit):  # noqa: BLE001
                self._callbacks = tuple(other for other in self._callbacks if other is not callback)
                self.warning(
                    f"callback {name} failed and is not called any more; the run goes on. "
                    f"{traceback.format_exc().rstrip()}"
                )
            if (seconds := time.monotonic() - began) > _SLOW_SECONDS:
                self.warning_once(f"callback {name} took {seconds:.1f} s, for which the run had to wait")

    def _track(self, event: RunEvent) -> None:
        """Passes an event to the trackers; one that is gone is dropped, and a warning says why."""
        for tracker in self._trackers:
            if (problem := tracker.take(event)) is not None:
                self._trackers = tuple(other for other in self._trackers if other is not tracker)
                self.warning(problem)

    def _record(self, write: Callable[[*_Args], None], *args: *_Args) -> bool:
        """Writes to the run directory and returns whether that worked; only the first failure is shown."""
        try:
            write(*args)
        except OSError as error:
            if self._is_complete:
                self._is_complete = False
                text = f"{self._run_dir.path} cannot be written ({error}); training goes on unrecorded"
                event = Event("warning", text, time.monotonic() - self._started)
                self._notify(lambda observer: observer.event(event))
            return False
        return True
