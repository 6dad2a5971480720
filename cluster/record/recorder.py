"""What a run writes to its folder and shows while it goes on.

Owns that a folder that cannot be written never ends a run; must not import ray or torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol

import numpy as np

from actors.core import EvaluationReport
from cluster.control.evaluation import Best, EvaluationRequest
from cluster.metrics.snapshot import Snapshot
from cluster.record.events import Event, EventKind
from cluster.record.run_dir import RunDir
from replay_service.messages import ShardStatus

_Written = ParamSpec("_Written")


class Observer(Protocol):
    """Who is shown a run's figures and events while it goes on."""

    def metrics(self, snapshot: Snapshot) -> None:
        """Called every metrics.every_seconds, and once at the end."""

    def event(self, event: Event) -> None:
        """Called when something happened that is worth a line: a restart, a new best, the end."""


class NewestSnapshot:
    """An observer that keeps the newest snapshot for whoever asks."""

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
    """Everything that is told of a run goes through here: to the observers, and to the run directory."""

    def __init__(self, run_dir: RunDir, observers: Sequence[Observer], started: float) -> None:
        """started: on the monotonic clock, when the run began."""
        self._run_dir = run_dir
        self._observers = tuple(observers)
        self._started = started
        self._warned: set[tuple[int, int]] = set()
        self._unrecorded = False

    def event(self, kind: EventKind, text: str) -> None:
        """Tells of something that happened."""
        event = Event(kind, text, time.monotonic() - self._started)
        self._record(self._run_dir.write_event, event)
        self._show(event)

    def info(self, text: str) -> None:
        """Tells of something that goes as it should."""
        self.event("info", text)

    def warning(self, text: str) -> None:
        """Tells of something that a person should look at."""
        self.event("warning", text)

    def snapshot(self, snapshot: Snapshot) -> None:
        """The figures of a moment."""
        self._record(self._run_dir.write_snapshot, snapshot)
        for observer in self._observers:
            observer.metrics(snapshot)

    def evaluation(self, request: EvaluationRequest, report: EvaluationReport) -> None:
        """An evaluation, every return in it."""
        self._record(self._run_dir.write_evaluation, request, report)

    def best(self, best: Best, flat: np.ndarray) -> None:
        """The weights [P] float32 that are the best so far."""
        facts = {"version": str(best.version), "return_mean": f"{best.score:.6g}"}
        self._record(self._run_dir.write_weights, "best", flat, facts)
        self.info(f"version {best.version} is the best so far: greedy return {best.score:.1f}, confirmed")

    def latest(self, version: int, flat: np.ndarray) -> bool:
        """The newest weights [P] float32; whether they could be written."""
        return self._record(self._run_dir.write_weights, "latest", flat, {"version": str(version)})

    def journal(self, status: ShardStatus) -> None:
        """Says once of each shard that its journal does not follow any more, if so."""
        shard = (status.shard, status.incarnation)
        if status.journal_error is not None and shard not in self._warned:
            self._warned.add(shard)
            self.warning(
                f"shard {status.shard} goes on in memory only, its journal is incomplete: "
                f"{status.journal_error}"
            )

    def _show(self, event: Event) -> None:
        for observer in self._observers:
            observer.event(event)

    def _record(
        self, write: Callable[_Written, None], *args: _Written.args, **kwargs: _Written.kwargs
    ) -> bool:
        """Writes to the run directory; where that fails (a full disk) says so once and training goes on."""
        try:
            write(*args, **kwargs)
        except OSError as error:
            if not self._unrecorded:
                self._unrecorded = True
                text = f"{self._run_dir.path} cannot be written ({error}); training goes on unrecorded"
                self._show(Event("warning", text, time.monotonic() - self._started))
            return False
        return True
