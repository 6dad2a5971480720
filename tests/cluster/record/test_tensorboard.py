"""TensorBoard files hold every metric of every line of metrics.jsonl."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from qfleet_serial import SMALL, train_serial

from cluster.metrics.snapshot import known_metrics
from cluster.record.tensorboard import require_tensorboard, scalars
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_config
from cluster.show.status import snapshot_of
from replay_service.histogram import Histogram


def test_tensorboard_gets_every_metric_of_every_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    train_serial(tmp_path / "run", [*SMALL, "metrics.every_seconds=0.02", "metrics.tensorboard=true"])
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    events = [Event.FromString(record) for record in records(file.read_bytes())]
    assert events[0].file_version == "brain.Event:2"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in events[1:]] == [line["env_steps_total"] for line in lines]
    for event, line in zip(events[1:], lines, strict=True):
        written = {value.tag: value.simple_value for value in event.summary.value}
        for name, metric in known_metrics(snapshot_of(line)).items():
            for tag, value in scalars(name, metric):
                assert written[tag] == pytest.approx(value, rel=1e-5, abs=1e-6)


def records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file: length, checksum of it, bytes, checksum of them."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        assert len(found[-1]) == length
        data = data[16 + length :]
    return found


def test_labels_become_parts_of_a_tag_and_histograms_their_mean() -> None:
    assert list(scalars("a", 3)) == [("a", 3)]
    assert list(scalars("a", {"x": {"y": 1.0}, "z": 2.0})) == [("a/x/y", 1.0), ("a/z", 2.0)]
    assert list(scalars("a", Histogram((1, 3), 10.0))) == [("a_mean", 2.5)]
    assert list(scalars("a", Histogram((0, 0), 0.0))) == []


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_tensorboard(load_config(None))
    with pytest.raises(ConfigError, match=r"metrics\.tensorboard is true.*\[tensorboard\]"):
        require_tensorboard(load_config(None, ["metrics.tensorboard=true"]))
