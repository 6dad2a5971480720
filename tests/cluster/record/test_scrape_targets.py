"""Service discovery: a run's file lives as long as the run, and the dead leave none behind."""

from __future__ import annotations

import json
import os
import platform
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from qfleet_processes import set_flags
from qfleet_serial import SMALL

from cluster.cli import EXIT_BAD_INPUT, EXIT_OK, run
from cluster.engines.process_info import start_ticks
from cluster.record.scrape_targets import advertised, targets_folder

RUN = {"run": "a", "env": "CartPole-v1"}


def entries(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert targets_folder() == tmp_path / "qfleet" / "targets"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert targets_folder() == tmp_path / "home" / ".local" / "state" / "qfleet" / "targets"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user id without an entry in passwd, which a container may give."""

    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_folder_can_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="HOME is not set, and this user has no home folder"):
        targets_folder()
    small = set_flags((*SMALL, "stop.updates=16"))
    copied = tmp_path / "working_dir_files" / "job"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    assert run(["train", "CartPole-v1", *small, "--run-dir", str(tmp_path / "run")]) == EXIT_OK
    assert "metrics at http://" in capsys.readouterr().out
    assert run(["train", "CartPole-v1", *small]) == EXIT_BAD_INPUT
    assert "no home folder: give the run's folder with --run-dir" in capsys.readouterr().err


def test_two_runs_of_one_process_are_found_until_they_end(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "targets"
    with advertised(folder, "127.0.0.1:9401", RUN):
        (file,) = folder.iterdir()
        assert file.suffix == ".json"
        assert json.loads(file.read_text()) == [{"targets": ["127.0.0.1:9401"], "labels": RUN}]
        with advertised(folder, "127.0.0.1:9402", {**RUN, "run": "b"}):
            assert len(entries(folder)) == 2
        assert entries(folder) == [file.name]
    assert entries(folder) == []


def test_an_error_removes_the_file_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), advertised(tmp_path, "127.0.0.1:9401", RUN):
        raise KeyError
    assert entries(tmp_path) == []


def test_what_the_dead_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    own = start_ticks(os.getpid())
    host = platform.node()
    dead = f"{host}-{child.pid}-{own}-9401.json"
    # A process lives that has the pid now, but began long after the file's owner did.
    reused = f"{host}-{os.getpid()}-{own - 1_000}-9401.json"
    other_host = f"{host}x-{child.pid}-1-9401.json"
    by_hand = [
        "my-cluster.json",
        f"{host}-a-b-c.json",
        f"{host}-1-²-9401.json",
        f"{host}-{'9' * 30}-1-9401.json",
    ]
    for name in (dead, reused, other_host, *by_hand):
        (tmp_path / name).write_text("[]")
    with advertised(tmp_path, "127.0.0.1:9402", RUN):
        assert dead not in entries(tmp_path)
        assert reused not in entries(tmp_path)
        assert len(entries(tmp_path)) == 6
    assert entries(tmp_path) == sorted([other_host, *by_hand])


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), advertised(tmp_path / "file" / "targets", "127.0.0.1:1", RUN):  # noqa: PT011
        pass
