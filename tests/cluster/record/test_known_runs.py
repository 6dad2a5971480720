"""`qfleet runs`: the runs of this user, wherever they were started."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from qfleet_serial import SMALL, train_serial

from cluster.cli import run
from cluster.record.known_runs import known_runs, remember_run


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_runs_are_listed_newest_first_from_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["runs"]) == 0
    assert "there are no runs yet" in capsys.readouterr().out
    train_serial(tmp_path / "elsewhere" / "older", [*SMALL, "stop.updates=8"])
    train_serial(tmp_path / "elsewhere" / "newer", [*SMALL, "stop.updates=200"])
    for file in (tmp_path / "elsewhere" / "older").iterdir():
        os.utime(file, (1_000_000, 1_000_000))
    (tmp_path / "here" / "runs" / "damaged").mkdir(parents=True)
    (tmp_path / "here" / "runs" / "damaged" / "config.yaml").write_text("learnr: {}\n")
    os.utime(tmp_path / "here" / "runs" / "damaged" / "config.yaml", (2_000_000, 2_000_000))
    assert run(["runs"]) == 0
    head, newer, damaged, older = capsys.readouterr().out.splitlines()
    assert head.split() == ["written", "state", "environment", "return", "steps", "folder"]
    assert newer.split()[1:4] == ["ago", "ended", "CartPole-v1"]
    assert float(newer.split()[4]) > 0.0
    assert newer.endswith(str(tmp_path / "elsewhere" / "newer"))
    assert "unreadable" in damaged
    assert older.endswith(str(tmp_path / "elsewhere" / "older"))


def test_a_run_is_remembered_once_and_forgotten_with_its_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").touch()
    remember_run(run_dir)
    remember_run(run_dir)
    assert known_runs() == [run_dir]
    shutil.rmtree(run_dir)
    assert known_runs() == []
