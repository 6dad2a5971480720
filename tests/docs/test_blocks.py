"""The how-to pages: their Python and their commands run, in order, unless a comment says why not.

`<!-- not run: reason -->` leaves the next block out; `<!-- needs package -->` runs it where there is that.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest
from qfleet_processes import import_path, set_flags

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("start", "own-environment", "several-seeds", "callbacks", "tracking", "tuning", "watching", "moving")
SHORT = (
    *("run.runtime=serial", "stop.updates=16", "evaluation.episodes=1", "evaluation.every_updates=16"),
    *("pacing.learning_starts=64", "learner.batch_size=16", "learner.updates_per_chunk=8"),
)
"""Added to each `qfleet train` of a page."""
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    mark: str
    language: str
    text: str

    @property
    def package(self) -> str:
        """The package that it needs; empty for none."""
        return self.mark.removeprefix("needs ") if self.mark.startswith("needs ") else ""


def blocks(page: str) -> list[Block]:
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    return [Block(*found) for found in _BLOCK.findall(text)]


def test_marks_say_why() -> None:
    marks = [block.mark for page in PAGES for block in blocks(page) if block.mark]
    assert len(marks) >= 4
    assert all(re.fullmatch(r"not run: .{10,}|needs \w+", mark) for mark in marks)
    assert {block.language for page in PAGES for block in blocks(page)} == {"python", "sh"}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_blocks_run(page: str, tmp_path: Path) -> None:
    missing = {
        block.package
        for block in blocks(page)
        if block.package and not importlib.util.find_spec(block.package)
    }
    shown = [
        block
        for block in blocks(page)
        if block.package not in missing and not block.mark.startswith("not run")
    ]
    if not shown:
        pytest.skip(f"{', '.join(missing)} is not installed")
    # What follows each other in one language is one program, which sees the names of those before it.
    before = ""
    for language, group in groupby(shown, key=lambda block: block.language):
        if language == "python":
            before += "".join(block.text for block in group)
            run(["-c", before], tmp_path)
            continue
        for line in "".join(block.text for block in group).splitlines():
            run_command(line, tmp_path)


def run_command(line: str, folder: Path) -> None:
    """Runs a `qfleet …` line by a shell, each run small."""
    assert line.startswith("qfleet "), line
    more = " ".join(set_flags(SHORT)) if line.startswith("qfleet train ") else ""
    done = subprocess.run(
        ["sh", "-ec", f'qfleet() {{ "{sys.executable}" -m cluster.main "$@"; }}\n{line} {more}'],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def run(arguments: list[str], folder: Path) -> None:
    # What the blocks before wrote must not be in the way of their repetition.
    subprocess.run(["rm", "-rf", str(folder / "runs"), str(folder / "study.db")], check=True)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), import_path())), "OMP_NUM_THREADS": "1"}
