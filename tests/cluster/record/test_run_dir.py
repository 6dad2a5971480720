"""The run directory: written by one process at a time, never overwritten, and read back as it was written."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qfleet_configs import VECTOR, resolved_config

from cluster.record.run_dir import (
    RunDir,
    holds_run,
    read_config,
    read_incarnations,
    read_provenance,
    read_spec,
    read_weights,
    refuse_unusable,
)
from cluster.record.run_lock import RunLock
from cluster.settings.config import ConfigError
from replay_service.block import FrameField

CONFIG = resolved_config("learner.batch_size=16")
PARTS = (FrameField("position", "<f4", (2,)), FrameField("map", "|u1", (8, 8, 1)))


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", CONFIG, VECTOR, {"source": "elsewhere"})


def test_config_and_provenance_are_read_back(run_dir: RunDir) -> None:
    assert holds_run(run_dir.path)
    assert read_config(run_dir.path) == CONFIG
    assert read_spec(run_dir.path) == VECTOR
    facts = read_provenance(run_dir.path)
    assert (facts["command"], facts["initial_weights"]) == (sys.argv, {"source": "elsewhere"})
    assert facts["packages"]["numpy"] == np.__version__


def test_an_observation_of_parts_is_read_back(tmp_path: Path) -> None:
    spec = replace(
        VECTOR, observation_shape=(), observation_dtype="|V72", parts=PARTS, reward_threshold=475.0
    )
    assert read_spec(RunDir.create(tmp_path / "run", CONFIG, spec).path) == spec


def test_a_resumed_run_has_its_new_config_and_a_note(run_dir: RunDir) -> None:
    run_dir.close()
    changed = resolved_config("learner.batch_size=32")
    for checkpoint in (None, 3):
        RunDir.reopen(RunLock(run_dir.path), changed, checkpoint, {"learner.batch_size": 32}).close()
    assert read_config(run_dir.path) == changed
    notes = [json.loads(line) for line in (run_dir.path / "resumes.jsonl").read_text().splitlines()]
    assert [(note["checkpoint"], note["changed"]) for note in notes] == [
        (-1, {"learner.batch_size": 32}),
        (3, {"learner.batch_size": 32}),
    ]


def test_one_process_at_a_time_runs_in_a_folder(run_dir: RunDir) -> None:
    with pytest.raises(ConfigError, match="another process is running in it"):
        RunLock(run_dir.path)
    run_dir.close()
    RunDir.reopen(RunLock(run_dir.path), CONFIG, None, {}).close()


@pytest.mark.parametrize("operation", ["fsync", "replace", "mkdir"])
def test_a_start_that_is_killed_at_any_moment_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    module = Path if operation in ("replace", "mkdir") else os
    whole = getattr(module, operation)
    for survived in itertools.count():
        calls = itertools.count()

        def killed(*given: Any, calls: Any = calls, survived: int = survived, **named: Any) -> Any:
            if next(calls) == survived:
                raise KeyboardInterrupt
            return whole(*given, **named)

        path = tmp_path / f"run-{survived}"
        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(module, operation, killed)
            RunDir.create(path, CONFIG, VECTOR).close()
            break
        if holds_run(path):
            assert read_spec(path) == VECTOR
            assert read_config(path) == CONFIG
        else:
            RunDir.create(path, CONFIG, VECTOR).close()
    assert survived >= 2


def test_incarnations_never_fall(run_dir: RunDir) -> None:
    assert read_incarnations(run_dir.path) == {}
    for started in ({"shard 0": 3, "learner": 0}, {"shard 0": 1}, {"learner": 2}):
        run_dir.write_incarnations(started)
    assert read_incarnations(run_dir.path) == {"shard 0": 3, "learner": 2}
    (run_dir.path / "incarnations.json").write_text("{torn")
    with pytest.raises(ConfigError, match=r"incarnations\.json: cannot be read.*move it away"):
        read_incarnations(run_dir.path)


def test_the_best_weights_are_read_unless_others_are_named(run_dir: RunDir) -> None:
    with pytest.raises(ConfigError, match="holds no weights yet"):
        read_weights(run_dir.path)
    run_dir.write_weights("latest", np.zeros(2, np.float32), {"version": "9"})
    assert read_weights(run_dir.path)[::2] == ("latest", {"version": "9"})
    with pytest.raises(ConfigError, match="holds no best weights"):
        read_weights(run_dir.path, "best")
    run_dir.write_weights("best", np.ones(2, np.float32), {"version": "7"})
    assert read_weights(run_dir.path)[::2] == ("best", {"version": "7"})
    assert read_weights(run_dir.path, "latest")[1].tolist() == [0.0, 0.0]
    (run_dir.path / "weights" / "best.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"best\.safetensors: cannot be read"):
        read_weights(run_dir.path)


@pytest.mark.parametrize("text", [None, "{torn", "[]", "{}", '{"environment": {"stack": "two"}}'])
def test_a_run_that_does_not_describe_its_environment_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(ConfigError, match=r"provenance\.json"):
        read_spec(tmp_path)


def test_nothing_is_overwritten(run_dir: RunDir, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"already holds a run.*--run-dir.*--resume"):
        refuse_unusable(run_dir.path)
    (tmp_path / "other").mkdir()
    refuse_unusable(tmp_path / "other")
    refuse_unusable(tmp_path / "not" / "there")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"is a link to nowhere, which is not there"):
        refuse_unusable(tmp_path / "dangling")
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        refuse_unusable(tmp_path / "other")
    with pytest.raises(ConfigError, match="cannot be written"):
        refuse_unusable(tmp_path / "other" / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        refuse_unusable(tmp_path / "run")


def test_a_folder_without_a_run_has_no_config(tmp_path: Path) -> None:
    assert not holds_run(tmp_path)
    with pytest.raises(ConfigError, match="no run directory"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
