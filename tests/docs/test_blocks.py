"""Every code block of the documents: it runs, in the order of its page, or a comment says why not.

`<!-- not run: reason -->` leaves the next block out, `<!-- needs: package -->` runs it where there is that,
and `<!-- file: name -->` saves it, as the text before it asks. Blocks of `text` show files and output.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from qfleet_documents import DOCUMENTS, ROOT, Block, blocks
from qfleet_processes import import_path, set_flags

import qfleet
from cluster.cli import make_parser, run

ELSEWHERE = {
    "README": "tests/docs/test_readme.py",
    "from-q-learning-to-dqn": "tests/docs/test_lesson.py",
}
"""Documents whose blocks another file runs."""
RUN_HERE = [page for page in DOCUMENTS if page.stem not in ELSEWHERE and any(b.runs for b in blocks(page))]
SLOW = {"several-seeds", "clusters"}
"""Pages whose commands start many processes; each runs in a process of its own."""
SHORT = (
    *("stop.updates=16", "evaluation.episodes=1", "evaluation.every_updates=16"),
    *("pacing.learning_starts=64", "learner.batch_size=16", "learner.updates_per_chunk=8"),
)
"""Added to each `qfleet train` of a page, unless it says otherwise."""
SMALL: Mapping[str, object] = {
    "run.runtime": "serial",
    "stop.updates": 64,
    "evaluation.every_updates": 32,
    "evaluation.episodes": 2,
}
"""Settings of each `qfleet.train(…)`, unless it gives them."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_block_runs_or_says_why_not(document: Path) -> None:
    for block in blocks(document):
        assert block.language in ("python", "sh", "text", "hex"), f"a block of {block.language or 'nothing'}"
        assert not block.mark or re.fullmatch(r"not run: .{10,}|(needs|file): [\w.]+", block.mark), block.mark
        if block.language == "text":
            assert "$ " not in block.text or block.mark, "it shows a command: say why that does not run"
    if document.stem not in ELSEWHERE and any(block.runs for block in blocks(document)):
        assert document in RUN_HERE
    elif (file := ELSEWHERE.get(document.stem)) is not None:
        assert (ROOT / file).is_file()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a user, whose modules can be imported; it has our configs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(qfleet, "train", small(qfleet.train))
    if importlib.util.find_spec("IPython") is None:
        monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
        monkeypatch.setitem(sys.modules, "IPython.display", display_module())
    yield tmp_path
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def small(train: Callable[..., object]) -> Callable[..., object]:
    def train_shortly(*args: Any, settings: Mapping[str, object] = SMALL, **more: Any) -> object:
        return train(*args, settings={**SMALL, **settings}, **more)

    return train_shortly


def display_module() -> ModuleType:
    """What a notebook's cells need of IPython, without showing anything."""

    class Cell:
        def update(self, shown: str) -> None:
            assert shown.startswith("<")

    module = ModuleType("IPython.display")
    vars(module).update(HTML=str, display=lambda shown, display_id: Cell())
    return module


@pytest.mark.parametrize(
    "document",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in SLOW), id=page.stem) for page in RUN_HERE],
)
def test_blocks_run(document: Path, folder: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(document):
        if not block.runs or is_missing(block.marked("needs")):
            continue
        if file := block.marked("file"):
            (folder / file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, document.name, "exec"), names)
        else:
            for command in block.commands():
                run_command(command, folder, own_process=document.stem in SLOW)


def is_missing(package: str) -> bool:
    return bool(package) and importlib.util.find_spec(package) is None


def run_command(command: str, folder: Path, *, own_process: bool) -> None:
    """Runs a `qfleet …` line, each run small."""
    program, *arguments = shlex.split(command)
    assert program == "qfleet", command
    if arguments[0] == "train":
        arguments += set_flags(each for each in SHORT if f"{each.partition('=')[0]}=" not in command)
        arguments += [] if "--runtime" in command else ["--runtime", "serial"]
    if not own_process:
        assert run(arguments) == 0, command
        return
    done = subprocess.run(
        [sys.executable, "-m", "cluster.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), import_path()))},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def inline_commands() -> Iterator[tuple[str, str]]:
    """Document and command of each `qfleet …` within a sentence or a cell, and of each in a block."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for code in re.findall(
            r"`(qfleet [a-z-][^`→]*)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        ):
            yield document.stem, " ".join(code.split())
        for block in blocks(document):
            yield from (
                (document.stem, line)
                for line in (block.commands() if block.language == "sh" else ())
                if line.startswith("qfleet ")
            )


def test_every_command_that_is_named_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is parsed, with a number where it has the K of a text; a sentence may leave out what it takes."""
    named = sorted(set(inline_commands()))
    assert len(named) > 60
    parser = make_parser()
    wrong = []
    for document, command in named:
        arguments = [re.sub(r"^K$", "2", part) for part in shlex.split(command.replace("…", ""))[1:]]
        try:
            parser.parse_args(arguments)
        except SystemExit:
            said = capsys.readouterr().err
            if "are required" not in said and "expected at least one argument" not in said:
                wrong.append((document, command))
    assert wrong == []


def test_a_block_without_its_mark_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: no such machine -->\n```sh\na\n```\n\n```sh\nqfleet runs # all\n\n```\n")
    marked, plain = blocks(page)
    assert (marked.runs, plain.runs) == (False, True)
    assert [*plain.commands()] == ["qfleet runs"]
    assert Block("file: a.py", "python", "").marked("file") == "a.py"
