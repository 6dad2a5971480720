"""A signal ends a command that reads a run: no traceback, no half a file, no environment left open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from qfleet_processes import DEADLINE_SECONDS, import_path
from qfleet_serial import SMALL, train_serial
from qfleet_test_envs import opened_and_left


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose environment notes when it is opened and closed, and hangs from its 200th step on."""
    folder = tmp_path_factory.mktemp("ended")
    env = ["env.id=qfleet_test_envs:Counted", f"env.kwargs.folder={folder}"]
    train_serial(folder / "run", [*SMALL, *env, "stop.updates=8"])
    config = folder / "run" / "config.yaml"
    kwargs = f"folder: {folder}"
    config.write_text(config.read_text().replace(kwargs, f"{kwargs}\n    steps: 200\n    how: hang"))
    return folder / "run"


def ends_by_sigterm(folder: Path, arguments: list[str], works: Callable[[], bool]) -> None:
    """Starts `qfleet ARGUMENTS`, sends SIGTERM once it works, and looks at what it says and how it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": import_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not works():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said == ("", "")


@pytest.mark.parametrize(
    "command",
    ["eval {run} --episodes 100000", "export {run} --format onnx"],
    ids=lambda command: command.split()[0],
)
def test_a_command_that_plays_ends_by_sigterm(command: str, ended: Path, tmp_path: Path) -> None:
    notes, before = ended.parent, sorted(ended.iterdir())
    assert opened_and_left(notes)[1] == 0

    def played() -> int:
        return len(list(notes.glob("*.played")))

    # A signal within the making of an environment leaves it to the end of the process.
    so_far = played()
    arguments = command.format(run=ended).split()
    ends_by_sigterm(tmp_path, arguments, lambda: played() > so_far)
    assert opened_and_left(notes)[1] == 0
    assert sorted(ended.iterdir()) == before


def test_a_report_ends_by_sigterm(ended: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes((ended / "config.yaml").read_bytes())
    pipe = run / "metrics.jsonl"
    os.mkfifo(pipe)
    before, writer = sorted(run.iterdir()), []

    def reads() -> bool:
        with suppress(OSError):  # nobody reads yet
            writer.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writer)

    # It waits for what is written there, which nobody does.
    ends_by_sigterm(tmp_path, ["report", str(run)], reads)
    os.close(writer.pop())
    assert sorted(run.iterdir()) == before
