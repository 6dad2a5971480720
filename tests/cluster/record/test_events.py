"""Events are read back as they were written, also those of runs before events had a kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.record.events import LEVELS, Event, EventKind, events_path, read_events
from cluster.record.logs import Level, LogSource

TRACEBACK = "Traceback (most recent call last):\n  File x\nValueError: y\n\nactor 3 raised the error above"


def written(run_dir: Path, *lines: tuple[Level, str]) -> Path:
    events_path(run_dir).parent.mkdir()
    source = LogSource("coordinator", 0, run_started_at=0.0)
    text = "".join(source.lines(level, text, float(at)) for at, (level, text) in enumerate(lines))
    events_path(run_dir).write_text(text)
    return run_dir


def test_events_are_read_back_oldest_first(tmp_path: Path) -> None:
    events = [
        Event("info", "actor 3 died; replaced", 0.0),
        Event("warning", "shard 0 goes on in memory only", 1.0),
        Event("failed", TRACEBACK, 2.0),
        Event("ended", "enough", 3.0),
    ]
    run_dir = written(tmp_path, *((LEVELS[event.kind], event.text) for event in events))
    assert read_events(run_dir) == events


@pytest.mark.parametrize(
    ("text", "kind", "rest"),
    [
        ("end: enough", "ended", "enough"),
        ("failed: x: y", "failed", "x: y"),
        ("an end: x", "info", "an end: x"),
    ],
)
def test_the_kind_once_was_in_the_text(tmp_path: Path, text: str, kind: EventKind, rest: str) -> None:
    assert read_events(written(tmp_path, ("INFO", text))) == [Event(kind, rest, 0.0)]


def test_a_run_without_a_log_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []


def test_an_event_is_one_line() -> None:
    assert Event("info", "actor 3 died", 1.0).line == "actor 3 died"
    assert Event("ended", "enough", 1.0).line == "end: enough"
    assert Event("failed", TRACEBACK, 1.0).line == "failed: ValueError: y; actor 3 raised the error above"
