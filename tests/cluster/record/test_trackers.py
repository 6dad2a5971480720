"""Trackers: what TensorBoard and W&B get, and that one which fails, hangs or dies costs a run one warning.

Tests cluster/record/tracking.py, cluster/record/tracker_messages.py, cluster/record/tensorboard.py and
cluster/record/wandb_run.py, too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from qfleet_configs import resolved_config
from qfleet_serial import SMALL, Recorder

from cluster.api import train
from cluster.engines.own_code import OWN_ROOT
from cluster.metrics.snapshot import Snapshot
from cluster.record import trackers
from cluster.record.callbacks import RunControl
from cluster.record.run_events import Ended, Evaluated, Measured, RunEvent, Started
from cluster.record.tracker_messages import HEADLINES, Begin, Finish
from cluster.record.trackers import (
    TrackerProcess,
    flat_settings,
    grouped,
    require_trackers,
    scalars,
)
from cluster.record.wandb_run import mode
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_config
from cluster.show.status import snapshot_of
from learner.weights import load_weights
from replay_service.histogram import Histogram

SHORT = (*SMALL, "env.id=CartPole-v1", "stop.updates=80", "evaluation.every_updates=40")
BOTH = [*SHORT, "metrics.every_seconds=0.02"]


def run(run_dir: Path, *overrides: str, callbacks: Any = ()) -> Recorder:
    view = Recorder()
    train(load_config(None, [*BOTH, *overrides]), run_dir, callbacks=callbacks, view=lambda *_: view)
    return view


def weights(run_dir: Path) -> bytes:
    flat, _ = load_weights(run_dir / "weights" / "latest.safetensors")
    return flat.tobytes()


def warnings(view: Recorder) -> list[str]:
    return [line for line in view.events if "tracker" in line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run without trackers."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    run(run_dir)
    return weights(run_dir)


def records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file: length, checksum of it, bytes, checksum of them."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        assert len(found[-1]) == length
        data = data[16 + length :]
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file: 7 bytes, then LevelDB's log, in blocks of 32 KiB."""
    at, record = 7, b""
    while at < len(data):
        if 0 < (left := -at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_tensorboard_gets_groups_settings_and_results(tmp_path: Path, plain: bytes) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    view = run(tmp_path / "run", "metrics.trackers=[tensorboard]")
    assert warnings(view) == []
    assert weights(tmp_path / "run") == plain
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    events = [Event.FromString(record) for record in records(file.read_bytes())]
    assert events[0].file_version == "brain.Event:2"
    by_tag = {value.tag: value for event in events for value in event.summary.value}
    (settings,) = by_tag["settings/text_summary"].tensor.string_val
    assert "learner:" in settings.decode()
    begin = HParamsPluginData.FromString(
        by_tag["_hparams_/session_start_info"].metadata.plugin_data.content
    ).session_start_info
    assert begin.hparams["learner.batch_size"].number_value == 16
    assert by_tag["end/text_summary"].tensor.string_val[0].decode() == "stop.updates = 80 reached"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [
        event for event in events if any(value.tag == "train/updates_total" for value in event.summary.value)
    ]
    assert [event.step for event in measured] == [line["env_steps_total"] for line in lines]
    for event, line in zip(measured, lines, strict=True):
        written = {value.tag: value.simple_value for value in event.summary.value}
        for tag, value in grouped(snapshot_of(line)).items():
            assert written[tag] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_wandb_keeps_settings_metrics_and_artifacts_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bytes
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    view = run(tmp_path / "run", "metrics.trackers=[wandb, tensorboard]")
    assert warnings(view) == []
    assert weights(tmp_path / "run") == plain
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    found = [Record.FromString(data) for data in log_records(file.read_bytes())]
    config = {item.key: item.value_json for each in found for item in each.run.config.update}
    assert json.loads(config["learner.batch_size"]) == 16
    names = {item.key or ".".join(item.nested_key) for each in found for item in each.history.item}
    assert {"env_steps", "train/updates_total", "eval/evaluation_return_mean"} <= names
    assert any(name.startswith("report") for name in names)
    kinds = {each.request.log_artifact.artifact.type or each.artifact.type for each in found}
    assert {"config", "metrics", "model", "report"} <= kinds


def test_a_tracker_that_is_killed_costs_one_warning(tmp_path: Path, plain: bytes) -> None:
    pytest.importorskip("tensorboardX")
    killed: list[int] = []

    def kill(event: RunEvent, control: RunControl) -> None:
        if isinstance(event, Evaluated) and not killed:
            (tracker,) = [
                child for child in psutil.Process().children() if child.cmdline()[-1] == "tensorboard"
            ]
            tracker.kill()
            with suppress(ChildProcessError):  # the run may have noticed its end before
                os.waitid(os.P_PID, tracker.pid, os.WEXITED | os.WNOWAIT)
            killed.append(tracker.pid)

    view = run(tmp_path / "run", "metrics.trackers=[tensorboard]", callbacks=[kill])
    (warning,) = warnings(view)
    assert "tracker tensorboard ended with status -9" in warning
    assert weights(tmp_path / "run") == plain


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_whose_disk_is_full_costs_one_warning(
    name: str, tmp_path: Path, plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(trackers._MODULES[name])  # type: ignore[index]
    monkeypatch.setenv("WANDB_MODE", "offline")
    no_room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    monkeypatch.setattr(trackers, "_CODE", no_room + trackers._CODE)
    view = run(tmp_path / "run", f"metrics.trackers=[{name}]")
    (warning,) = warnings(view)
    assert f"tracker {name} ended with status" in warning
    assert weights(tmp_path / "run") == plain


def test_the_process_of_wandb_that_is_killed_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    killed: list[psutil.Process] = []

    def kill(event: RunEvent, control: RunControl) -> None:
        if not killed:
            helpers = [each for each in psutil.Process().children(True) if each.name() == "wandb-core"]
            for helper in helpers:
                helper.kill()
                control.stop("it is killed")
            killed.extend(helpers)

    endless = ("stop.updates=null", "stop.target_return=null", "evaluation.every_updates=100_000")
    view = run(tmp_path / "run", "metrics.trackers=[wandb]", *endless, callbacks=[kill])
    assert killed
    (warning,) = warnings(view)
    assert "tracker wandb ended with status" in warning


def test_a_tracker_that_cannot_write_costs_one_warning(tmp_path: Path, plain: bytes) -> None:
    pytest.importorskip("tensorboardX")

    def block(event: RunEvent, control: RunControl) -> None:
        if isinstance(event, Started):
            (event.run_dir / "tensorboard").write_text("no folder")

    view = run(tmp_path / "run", "metrics.trackers=[tensorboard]", callbacks=[block])
    (warning,) = warnings(view)
    assert "tracker tensorboard ended with status 1" in warning
    assert "FileExistsError" in (tmp_path / "run" / "logs" / "tracker-tensorboard.log").read_text()
    assert weights(tmp_path / "run") == plain


def test_a_tracker_that_hangs_never_holds_up_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_CODE", "import signal; signal.pause()")
    monkeypatch.setattr(trackers, "_QUEUED", 4)
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.2)
    tracker = TrackerProcess("tensorboard", tmp_path)
    full = Snapshot(lane_transitions={f"lane {lane}": 1.0 for lane in range(2_000)})
    for _ in range(50):
        assert tracker.take(Measured(full)) is None
    problem = tracker.close()
    assert problem == "tracker tensorboard had not written all after 0 s and was ended"
    assert not psutil.pid_exists(tracker._process.pid)


def test_a_tracker_loads_neither_torch_nor_pandas(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    messages = (Begin(str(tmp_path), {}, ""), Finish("done", False, {}))
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", trackers._CODE, str(OWN_ROOT), "tensorboard"],
        input=b"".join(msgspec.json.encode(message) + b"\n" for message in messages),
        capture_output=True,
        timeout=60,
    )
    loaded = set(re.findall(r"\| +([\w.]+)$", ran.stderr.decode(), re.MULTILINE))
    assert ran.returncode == 0
    assert "tensorboardX" in loaded
    assert not {"torch._C", "pandas._libs"} & loaded  # the names themselves are tried


def test_a_tracker_that_is_too_slow_gets_fewer_metrics_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
    got = tmp_path / "got"
    read = f"import sys\npathlib.Path({str(got)!r}).write_text(sys.stdin.read())"
    monkeypatch.setattr(trackers, "_CODE", f"{wait}{read}")
    monkeypatch.setattr(trackers, "_QUEUED", 4)
    tracker = TrackerProcess("tensorboard", tmp_path)
    full = Snapshot(lane_transitions={f"lane {lane}": 1.0 for lane in range(2_000)})
    for _ in range(50):
        tracker.take(Measured(full))
    go.touch()
    assert tracker.take(Ended("done", failed=False)) is None
    problem = tracker.close()
    assert problem is not None
    assert problem.startswith("tracker tensorboard was too slow: ")
    lines = [json.loads(line) for line in got.read_text().splitlines()]
    assert len(lines) < 50
    assert lines[-1]["type"] == "Finish"


def test_groups_are_those_that_people_expect() -> None:
    groups = {item.metadata["group"] for item in dataclasses.fields(Snapshot)}
    assert groups == {"rollout", "train", "eval", "time", "replay", "system", "custom"}
    snapshot = Snapshot(
        custom={"mine": 2.0}, loss=0.5, roles_up={"actor": 3.0}, epsilon=0.1, best_return_mean=9.0
    )
    assert {tag: value for tag, value in grouped(snapshot).items() if value} == {
        "custom/mine": 2.0,
        "train/loss": 0.5,
        "system/roles_up/actor": 3.0,
        "rollout/epsilon": 0.1,
        "eval/best_return_mean": 9.0,
    }
    assert {*HEADLINES} <= grouped(Snapshot(best_return_mean=1.0, train_return_mean=1.0)).keys()


def test_labels_become_parts_of_a_tag_and_histograms_their_mean() -> None:
    assert list(scalars("a", 3)) == [("a", 3)]
    assert list(scalars("a", {"x": {"y": 1.0}, "z": 2.0})) == [("a/x/y", 1.0), ("a/z", 2.0)]
    assert list(scalars("a", Histogram((1, 3), 10.0))) == [("a_mean", 2.5)]
    assert list(scalars("a", Histogram((0, 0), 0.0))) == []


def test_settings_are_flat() -> None:
    found = flat_settings(resolved_config("learner.hidden_sizes=[16, 8]"))
    assert found["learner.hidden_sizes"] == "[16,8]"
    assert found["learner.double"] is False
    assert found["replay.num_shards"] == 1


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_trackers(load_config(None))
    with pytest.raises(ConfigError, match=r"metrics\.trackers names tensorboard.*\[tensorboard\]"):
        require_trackers(load_config(None, ["metrics.trackers=[tensorboard]"]))
    with pytest.raises(ConfigError, match=r"metrics\.trackers"):
        load_config(None, ["metrics.trackers=[tensorboard, tensorboard]"])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("tensorboard", "is 'tensorboard'; give a list of tensorboard, wandb, such as [tensorboard]"),
        ("[wandb, tensorbord]", "[1] is 'tensorbord'; give one of tensorboard, wandb"),
    ],
)
def test_wrong_trackers_are_told(value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"metrics.trackers{' ' * (told[0] == 'i')}{told}")):
        load_config(None, [f"metrics.trackers={value}"])


def test_wandb_is_online_where_there_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mode() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() is None
