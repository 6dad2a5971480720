"""The lesson cannot rot: its Python and its commands run, what it points to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.cli import run
from learner.objectives.q_learning import tabular_backup

ROOT = Path(__file__).resolve().parents[2]
LESSON = (ROOT / "docs" / "from-q-learning-to-dqn.md").read_text(encoding="utf-8")
SHORT = {"stop.updates": "3", "evaluation.episodes": "1", "metrics.every_seconds": "60"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", LESSON, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


def test_python_blocks_run_one_after_the_other() -> None:
    assert len(blocks("python")) == 4
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "from-q-learning-to-dqn.md", "exec"), names)


def test_an_assertion_of_the_lesson_can_fail() -> None:
    names: dict[str, Any] = {"torch": torch, "tabular_backup": tabular_backup}
    right, wrong = blocks("python")[1], blocks("python")[1].replace("alpha / 2", "alpha")
    exec(right, dict(names))
    with pytest.raises(AssertionError):
        exec(wrong, names)


def test_each_failure_has_its_command() -> None:
    assert len(COMMANDS) == 10


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS), ids=lambda line: line.partition("configs/")[2])
def test_commands_train(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)
    program, *arguments = shlex.split(command)
    assert program == "qfleet"
    short = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]
    assert run([*arguments, "--runtime", "serial", "--run-dir", str(tmp_path / "run"), *short]) == 0
    assert (tmp_path / "run" / "weights" / "latest.safetensors").is_file()


def test_what_it_points_to_is_there() -> None:
    pointers = re.findall(r"`([A-Za-z_.]+)`(?:,| in)\s+`([\w/]+\.py)`", LESSON)
    assert len(pointers) >= 7
    for name, path in pointers:
        source = (ROOT / path).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"(?:def|class) {part}\b", source), f"{path} has no {name}"
    for path in re.findall(r"`((?:configs|tests|docs|learner|actors|replay_service)/[\w/.-]+)`", LESSON):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\(([\w.-]+)(?:#[\w-]+)?\)", LESSON):
        assert (ROOT / "docs" / path).is_file(), path
