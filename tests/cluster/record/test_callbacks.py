"""Callbacks: typed events in order, requests to stop, metrics of their own, mistakes that cost nothing.

Tests cluster/record/run_events.py, too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from qfleet_serial import SMALL, Recorder
from qfleet_test_envs import Corridor

from actors.envs.errors import EnvError
from cluster.api import Result, train
from cluster.record import recorder as recording
from cluster.record.callbacks import Callback, RunControl
from cluster.record.run_events import (
    CheckpointSaved,
    Ended,
    Evaluated,
    Measured,
    NewBest,
    RunEvent,
    Started,
)
from cluster.report.table import load_metrics
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_config
from learner.weights import load_weights

SHORT = (*SMALL, "env.id=CartPole-v1", "stop.updates=80", "evaluation.every_updates=40")

GIVEN = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in SMALL)}
"""SMALL as Python passes settings."""


def run(run_dir: Path, *callbacks: Callback, view: Recorder | None = None, overrides: Any = SHORT) -> Result:
    shown = view or Recorder()
    return train(load_config(None, overrides), run_dir, callbacks=callbacks, view=lambda *_: shown)


def weights(run_dir: Path) -> bytes:
    flat, _ = load_weights(run_dir / "weights" / "latest.safetensors")
    return flat.tobytes()


def test_events_come_in_their_order_with_what_they_name(tmp_path: Path) -> None:
    events: list[RunEvent] = []

    def remember(event: RunEvent, control: RunControl) -> None:
        events.append(event)
        if isinstance(event, NewBest):
            _, facts = load_weights(event.weights)
            assert facts["version"] == str(event.version)
        if isinstance(event, CheckpointSaved):
            assert (event.path / "manifest.json").is_file()

    result = run(tmp_path / "run", remember, overrides=[*SHORT, "metrics.every_seconds=0.01"])
    kinds = [type(event) for event in events]
    assert kinds[0] is Started
    assert kinds[-1] is Ended
    assert {*kinds} == {Started, Measured, Evaluated, NewBest, CheckpointSaved, Ended}
    started, ended = events[0], events[-1]
    assert isinstance(started, Started)
    assert (started.run_dir, started.config.stop.updates) == ((tmp_path / "run").absolute(), 80)
    assert ended == Ended("stop.updates = 80 reached", failed=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert [(each.version, [*each.returns], each.confirms) for each in evaluated] == [
        (line["version"], line["returns"], line["confirms"]) for line in lines
    ]
    assert [each.return_mean for each in evaluated] == [line["return_mean"] for line in lines]
    best = [event for event in events if isinstance(event, NewBest)][-1]
    assert (best.version, best.return_mean) == (result.outcome.best_version, result.outcome.best_return_mean)
    measured = [event.snapshot for event in events if isinstance(event, Measured)]
    assert measured[-1].updates_total == 80


def test_a_callback_stops_the_run_which_can_go_on(tmp_path: Path) -> None:
    def prune(event: RunEvent, control: RunControl) -> None:
        if isinstance(event, Evaluated) and event.return_mean < 1e9:
            control.stop(f"{event.return_mean:.0f} is too little")

    result = run(tmp_path / "run", prune)
    assert result.outcome.reason.startswith("a callback stopped the run: ")
    assert result.outcome.reason.endswith("is too little")
    assert result.signal is None
    assert result.outcome.final.updates_total < 80
    resumed = train(load_config(None, SHORT), tmp_path / "run", resume="must", view=lambda *_: Recorder())
    assert resumed.outcome.final.updates_total == 80


def test_a_callback_adds_metrics(tmp_path: Path) -> None:
    def count(event: RunEvent, control: RunControl) -> None:
        if isinstance(event, Evaluated):
            control.log({"worst": min(event.returns), "nothing": float("nan")})

    result = run(tmp_path / "run", count)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["custom"] == {"worst": result.outcome.final.custom["worst"]}  # type: ignore[index]
    assert [*load_metrics(tmp_path / "run")["custom.worst"]][-1] == last["custom"]["worst"]
    with pytest.raises(TypeError, match="metric best is 'high'"):
        RunControl().log({"best": "high"})  # type: ignore[dict-item]


def test_a_callback_that_raises_is_dropped_and_the_run_learns_the_same(tmp_path: Path) -> None:
    calls: list[RunEvent] = []

    def mistaken(event: RunEvent, control: RunControl) -> None:
        calls.append(event)
        if isinstance(event, Evaluated):
            raise SystemExit(f"at version {event.version}")

    view = Recorder()
    result = run(tmp_path / "run", mistaken, view=view)
    assert result.outcome.reason == "stop.updates = 80 reached"
    assert isinstance(calls[-1], Evaluated)
    (warning,) = [line for line in view.events if "callback" in line]
    assert "callback mistaken failed and is not called any more" in warning
    assert "SystemExit: at version 40" in warning
    run(tmp_path / "without")
    assert weights(tmp_path / "run") == weights(tmp_path / "without")


def test_a_slow_callback_is_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_SLOW_SECONDS", -1.0)

    class Slow:
        def __call__(self, event: RunEvent, control: RunControl) -> None:
            pass

    view = Recorder()
    run(tmp_path / "run", Slow(), view=view)
    assert len([line for line in view.events if "callback Slow took" in line]) == 1


def test_classes_and_functions_stand_for_their_names(tmp_path: Path) -> None:
    settings = {
        "env.wrappers": [gym.wrappers.RecordEpisodeStatistics],
        **GIVEN,
        "stop.updates": 8,
    }
    train(Corridor, tmp_path / "run", settings=settings, view=lambda *_: Recorder())
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "id: qfleet_test_envs:Corridor" in saved
    assert "gymnasium.wrappers.common:RecordEpisodeStatistics" in saved
    with pytest.raises(ConfigError, match="no name by which other processes find it"):
        train(lambda: Corridor(), tmp_path / "other")
    with pytest.raises(ConfigError, match="is no setting"):
        train("CartPole-v1", tmp_path / "other", settings={"stop.updates": object()})
    assert not (tmp_path / "other").exists()


def test_an_environment_gets_the_arguments_that_a_program_gives(tmp_path: Path) -> None:
    kwargs = {"steps": 5, "how": "1e-3", "dt": 1e-5, "limit": math.inf, "name": "\U0001f600", "range": (0, 1)}
    with pytest.raises(EnvError, match=r"Told its arguments: .*") as error:
        train(told_arguments, tmp_path / "run", settings={"env.kwargs": kwargs})
    assert f"{kwargs | {'range': [0, 1]}}" in str(error.value)


def told_arguments(**kwargs: object) -> gym.Env:
    raise ValueError(f"Told its arguments: {kwargs}")
