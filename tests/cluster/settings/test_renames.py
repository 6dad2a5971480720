"""A run of 6afb764 (tests/data) is read, resumed and reported by today's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from qfleet_serial import SMALL, Recorder, train_serial

from cluster.api import SavedRun, load_policy, prepare, train
from cluster.checkpoints.checkpoint import checkpoint_folders, read_checkpoint
from cluster.record.events import read_events
from cluster.record.run_dir import read_config, read_spec
from cluster.report.runs import periods, read_run
from cluster.settings.load_config import load_config
from cluster.settings.renames import (
    rename_settings,
    renamed_manifest,
    renamed_metrics,
    with_meanings,
    with_network_meanings,
)
from cluster.show.status import snapshot_of, status_of_directory

OLD_RUN = Path(__file__).parents[2] / "data" / "run_6afb764"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


def test_settings_are_read_by_todays_names(old_run: Path) -> None:
    config = read_config(old_run)
    assert config.learner.optimizer == "adam"
    assert config.learner.normalize_observations
    assert config.replay.sampling == "prioritized"
    # As a file to train from it means the same.
    assert load_config(old_run / "config.yaml").learner.normalize_observations


def test_a_checkpoint_is_read_by_todays_names(old_run: Path) -> None:
    (folder,) = checkpoint_folders(old_run / "checkpoints")
    manifest = read_checkpoint(folder).manifest
    assert (manifest.number, manifest.version) == (2, 240)
    assert manifest.run.counters.sampled_transitions == 240 * 32
    assert manifest.run.selection.best is not None
    assert manifest.run.selection.best.version == 100


def test_events_metrics_and_report_are_read_by_todays_names(old_run: Path) -> None:
    assert [event.kind for event in read_events(old_run)] == ["info"] * 4 + ["ended"]
    status = status_of_directory(old_run)
    assert (status.state, status.description) == ("ended", "ended: stop.updates = 240 reached")
    assert status.snapshot is not None
    assert status.snapshot.unacknowledged_transitions == 0
    assert status.snapshot.verdict is not None
    assert status.snapshot.verdict.stage == "learner"
    assert status.snapshot.verdict.line.startswith(
        "learning limits the speed: updates take 45% of the time; give it"
    )
    told = read_run(old_run)
    assert told.end == "stop.updates = 240 reached"
    assert told.settings["replay.sampling"] == "prioritized"
    assert "unacknowledged_transitions" in told.last
    assert [(period.kind, period.text[:25]) for period in periods(told)] == [
        ("verdict", "learning limits the speed")
    ]


def test_it_is_resumed_and_leaves_what_it_wrote_readable(old_run: Path) -> None:
    view = Recorder()
    config = load_config(old_run / "config.yaml", ["stop.updates=320"])
    result = train(config, old_run, resume="must", view=lambda *_: view)
    assert result.outcome.final.updates_total == 320
    assert any(event.startswith("resumed from checkpoint 2, version 240") for event in view.events)
    assert [folder.name for folder in checkpoint_folders(old_run / "checkpoints")][-1] == "checkpoint-000004"
    # And once more: a line of resumes.jsonl with the old name of its key is there, too.
    with (old_run / "resumes.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"cut": 4}) + "\n")
    config = load_config(old_run / "config.yaml", ["stop.updates=340"])
    assert (
        train(config, old_run, resume="must", view=lambda *_: Recorder()).outcome.final.updates_total == 340
    )
    assert load_policy(old_run)


def test_warnings_were_texts_and_are_findings() -> None:
    text = "diverging Q: |Q| is 300, loss: 3. Cause: steps are long. Cure: learner.learning_rate=1e-4 (now 1)"
    line = {"warnings": [text], "verdict": None, "unconfirmed_transitions": 3}
    snapshot = snapshot_of(line)
    (finding,) = snapshot.warnings
    assert (finding.name, finding.evidence, finding.text) == ("diverging_q", "|Q| is 300, loss: 3", text)
    assert (snapshot.verdict, snapshot.unacknowledged_transitions) == (None, 3)
    # What this version writes stays as it is.
    today = {"warnings": [{"name": "stale_data"}], "verdict": {"stage": "actor", "text": "a-bound: b"}}
    assert renamed_metrics(today) == today


def test_only_what_the_table_names_is_renamed() -> None:
    tree = {"learner": {"optimiser": "sgd", "batch_size": 3}, "replay": {"sampling": "uniform"}, "env": None}
    rename_settings(tree)
    assert tree == {
        "learner": {"optimizer": "sgd", "batch_size": 3}, "replay": {"sampling": "uniform"}, "env": None,
    }  # fmt: skip
    manifest = {"run": {"figures": {"sampled_rows": 3, "updates": 1}, "judge": {}}, "number": 1}
    assert renamed_manifest(manifest) == {
        "run": {"counters": {"sampled_transitions": 3, "updates": 1}, "selection": {}}, "number": 1,
    }  # fmt: skip


def test_bytes_and_images_of_old_runs_keep_their_meaning() -> None:
    """Those runs divided bytes by 255, and took the last axis for the channels unless it was the longest."""
    alone = {"observation_dtype": "|u1", "observation_shape": [7, 7, 20], "parts": []}
    today = with_meanings(alone)
    assert (today["pixels"], today["image_layouts"]) == (["observation"], {"observation": "CHW"})
    parts = [
        {"name": "camera", "dtype": "|u1", "shape": [20, 8, 8]},
        {"name": "map", "dtype": "<f4", "shape": [48, 48]},
        {"name": "stack", "dtype": "<f4", "shape": [4, 64, 64, 3]},
    ]
    today = with_meanings({"observation_dtype": "|V", "observation_shape": [], "parts": parts})
    assert today["pixels"] == ["camera"]
    assert today["image_layouts"] == {"camera": "HWC", "map": "HW"}
    assert with_meanings(today) == today


def test_facts_of_exported_networks_keep_their_meaning() -> None:
    facts = {"network": "impala_cnn", "stack": 4, "observations": {"observation": ["|u1", [4, 20, 8, 8]]}}
    assert with_network_meanings(facts) == facts | {
        "pixels": ["observation"],
        "image_layouts": {"observation": "HWC"},
    }
    assert with_network_meanings(facts | {"network": "mlp"})["image_layouts"] == {}


def test_an_old_run_on_bytes_is_resumed_as_it_was(tmp_path: Path) -> None:
    """Its codes 0 to 3 were divided by 255; a new run takes them as they are."""
    settings = [*SMALL, "env.id=qfleet_test_envs:ByteCodes", "stop.updates=100"]
    train_serial(tmp_path / "run", settings)
    path = tmp_path / "run" / "provenance.json"
    provenance = json.loads(path.read_text())
    assert provenance["environment"].pop("pixels") == []
    provenance["environment"].pop("image_layouts")
    path.write_text(json.dumps(provenance))
    config = load_config(tmp_path / "run" / "config.yaml", ["stop.updates=120"])
    assert prepare(config).spec.pixels == ()
    saved = SavedRun(read_spec(tmp_path / "run"), read_config(tmp_path / "run"))
    assert prepare(config, saved).spec.pixels == ("observation",)
    ended = train(config, tmp_path / "run", resume="must", view=lambda *_: Recorder())
    assert "stop.updates = 120" in ended.outcome.reason
