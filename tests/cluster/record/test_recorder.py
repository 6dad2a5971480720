"""The recorder: a run directory that cannot be written is reported once, and the run goes on."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from qfleet_configs import VECTOR, resolved_config
from qfleet_reports import evaluation_report, shard_metrics, shard_status
from qfleet_serial import Recorder as View

from cluster.control.evaluation import Best, EvaluationRequest
from cluster.metrics.snapshot import Snapshot
from cluster.record.events import Event, read_events
from cluster.record.recorder import NewestSnapshot, Recorder
from cluster.record.run_dir import RunDir, read_weights


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", resolved_config(), VECTOR)


def test_what_a_run_reports_is_recorded_and_shown(run_dir: RunDir) -> None:
    view, newest = View(), NewestSnapshot()
    assert newest() is None
    recorder = Recorder(run_dir, (view, newest), time.monotonic())
    recorder.info("a checkpoint")
    recorder.warning("little memory")
    recorder.snapshot(Snapshot(updates_total=7))
    recorder.evaluation(EvaluationRequest(1, 0, 2, confirms=False), evaluation_report())
    recorder.best(Best(3, 1.0, 1.5), np.ones(4, np.float32))
    assert recorder.latest(4, np.zeros(4, np.float32))
    run_dir.close()
    assert view.events[:2] == ["a checkpoint", "warning: little memory"]
    assert view.events[2].startswith("version 3 is the best so far: greedy return 1.5")
    assert [event.line for event in read_events(run_dir.path)] == view.events
    assert view.snapshots == [newest()] == [Snapshot(updates_total=7)]
    assert [
        len((run_dir.path / f"{name}.jsonl").read_text().splitlines()) for name in ("metrics", "evaluations")
    ] == [1, 1]
    name, flat, facts = read_weights(run_dir.path)
    assert (name, flat.tolist(), facts["version"]) == ("best", [1.0] * 4, "3")


def test_a_folder_that_is_full_is_reported_once(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    view = View()
    recorder = Recorder(run_dir, (view,), time.monotonic())
    with monkeypatch.context() as patched:
        for name in ("write_event", "write_snapshot", "write_evaluation", "write_weights"):
            patched.setattr(RunDir, name, full)
        recorder.info("a checkpoint")
        recorder.snapshot(Snapshot(updates_total=7))
        assert not recorder.latest(4, np.zeros(4, np.float32))
    recorder.info("another")
    (warning,) = [event for event in view.events if event.startswith("warning: ")]
    assert "No space left on device" in warning
    assert "goes on unrecorded" in warning
    assert [event for event in view.events if event != warning] == ["a checkpoint", "another"]
    assert view.snapshots == [Snapshot(updates_total=7)]
    assert [event.line for event in read_events(run_dir.path)] == ["another"]


class BrokenView(View):
    """A view whose terminal is gone after the first event."""

    def event(self, event: Event) -> None:
        if self.events:
            raise BrokenPipeError(32, "Broken pipe")
        super().event(event)

    def metrics(self, snapshot: Snapshot) -> None:
        raise SystemExit(1)


@pytest.mark.parametrize("first", ["event", "metrics"])
def test_a_view_that_fails_is_told_nothing_more_and_costs_nothing_else(run_dir: RunDir, first: str) -> None:
    broken, newest = BrokenView(), NewestSnapshot()
    recorder = Recorder(run_dir, (broken, newest), time.monotonic())
    recorder.info("a checkpoint")
    if first == "event":
        recorder.info("another")
    recorder.snapshot(Snapshot(updates_total=7))
    recorder.info("the end")
    run_dir.close()
    assert broken.events == ["a checkpoint"]
    assert newest() == Snapshot(updates_total=7)
    lines = [event.line for event in read_events(run_dir.path)]
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert warning.startswith("warning: BrokenView failed (")
    assert "qfleet status" in warning
    assert lines[-1] == "the end"


def test_what_a_shard_refuses_is_warned_of_once(run_dir: RunDir) -> None:
    view = View()
    recorder = Recorder(run_dir, (view,), time.monotonic())
    for shard, pushes, priorities in ((0, 0, 0), (0, 2, 0), (0, 3, 0), (1, 0, 4)):
        recorder.refusals(shard, shard_metrics(refused_pushes=pushes, refused_priorities=priorities))
    assert [text.partition(" pushes")[0] for text in view.events] == [
        "warning: shard 0 refused 2",
        "warning: shard 1 refused 0",
    ]


def test_each_incomplete_journal_is_warned_of_once(run_dir: RunDir) -> None:
    view = View()
    recorder = Recorder(run_dir, (view,), time.monotonic())
    for shard, incarnation, error in (
        (0, 0, None),
        (0, 0, "full"),
        (0, 0, "full"),
        (1, 0, "full"),
        (0, 1, "full"),
    ):
        recorder.journal(shard_status(shard=shard, incarnation=incarnation, journal_error=error))
    assert [text.partition(" goes on")[0] for text in view.events] == [
        "warning: shard 0",
        "warning: shard 1",
        "warning: shard 0",
    ]
