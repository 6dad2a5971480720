"""What a terminal does to a whole run costs at most the view: closed, full, broken, ASCII, hung up."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from qfleet_processes import DEADLINE_SECONDS, LocalRun, import_path, set_flags
from qfleet_serial import SMALL

from learner.weights import load_weights

SMALL_FLAGS = set_flags(SMALL)


def shell(
    folder: Path, words: str, *arguments: str, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """`qfleet ARGUMENTS` with the redirections in `words`; output buffered as a user's is."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [
            "bash",
            "-o",
            "pipefail",
            "-c",
            f'"$@" {words}',
            "bash",
            sys.executable,
            "-m",
            "cluster.main",
            *arguments,
        ],
        cwd=folder,
        env={**env, "PYTHONPATH": import_path(), "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def events(run_dir: Path) -> str:
    return (run_dir / "logs" / "events.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "encoding", "warning"),
    [
        pytest.param("| head -1", "utf-8", "Broken pipe", id="the reader leaves"),
        pytest.param("> /dev/full", "utf-8", "No space left on device", id="a full disk"),
        pytest.param("<&- >&- 2>&-", "utf-8", "", id="closed streams"),
        pytest.param("", "ascii", "", id="ascii"),
    ],
)
def test_a_run_reaches_its_end_whatever_its_output_does(
    tmp_path: Path, words: str, encoding: str, warning: str
) -> None:
    run = ["train", "CartPole-v1", *SMALL_FLAGS, "--run-dir", "run"]
    ended = shell(tmp_path, words, *run, encoding=encoding)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    said = events(tmp_path / "run")
    assert len(re.findall(r"WARNING LineView failed .* shows nothing more", said)) == bool(warning), said
    assert warning in said
    assert load_weights(tmp_path / "run" / "weights" / "latest.safetensors")[1]["version"] == "200"


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        pytest.param("| true", 128 + signal.SIGPIPE, "", id="the reader leaves"),
        pytest.param(
            "> /dev/full",
            1,
            "qfleet: standard output cannot be written: [Errno 28] No space left on device\n",
            id="a full disk",
        ),
    ],
)
def test_an_answer_that_cannot_be_given_is_no_success(
    tmp_path: Path, words: str, status: int, error: str
) -> None:
    asked = shell(tmp_path, words, "check-env", "CartPole-v1")
    assert (asked.returncode, asked.stderr) == (status, error)


@pytest.mark.slow
def test_a_terminal_that_closes_stops_the_run_which_saves(local_run: LocalRun) -> None:
    small = [each for each in SMALL if not each.startswith(("run.", "stop."))]
    more = ("actors.num_actors=1", "metrics.every_seconds=0.2", "stop.target_return=1000000")
    ours, terminal = pty.openpty()
    local_run.start_on_terminal(terminal, "CartPole-v1", *set_flags((*small, *more)))
    os.close(terminal)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while local_run.updates() == 0:
        assert time.monotonic() < deadline, "no update in time"
        if select.select([ours], [], [], 0.2)[0]:
            os.read(ours, 65_536)
    shown = local_run.updates()
    os.close(ours)
    assert local_run.finish() == 128 + signal.SIGHUP
    assert "stopped by SIGHUP" in events(local_run.run_dir)
    latest = load_weights(local_run.run_dir / "weights" / "latest.safetensors")[1]
    assert int(latest["version"]) >= shown
    local_run.assert_nothing_left()
