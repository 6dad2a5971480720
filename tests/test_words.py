"""The words of the field: one word for each thing, in code, settings, messages and documents.

The test splits every tracked text file into words, and identifiers at underscores and capitals, so it finds
`cut` in `begin_cut` and `CutState` too. `python -m pytest tests/test_words.py` lists file, line, word and
what to write instead. Each exception stands below with its reason; one that nothing needs fails as well.
"""

import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

FORBIDDEN = {
    "cut": "checkpoint; of episodes: truncate; of text: shorten",
    "cuts": "checkpoints",
    "cutter": "checkpoint writer",
    "cutters": "checkpoint writers",
    "accounts": "counters",
    "judge": "evaluate, decide",
    "judges": "evaluates, decides",
    "patience": "timeout",
    "continuity": "recovery",
    "presence": "process",
    "speaker": "reporter",
    "speakers": "reporters",
    "story": "description, traceback",
    "stories": "descriptions",
    "slope": "gradient",
    "slopes": "gradients",
    "spell": "period",
    "spells": "periods",
    "unconfirmed": "unacknowledged",
}
"""What must not occur -> what to write instead."""

BRITISH = ("optimis", "prioritis", "normalis")
"""Beginnings of the British words that settings once had; `codespell` knows all others."""

TABLE_WORDS = {"row": "transition", "rows": "transitions"}
PLOT_WORDS = {"figure": "metric, number", "figures": "metrics, numbers"}

NAMES = {
    "num_rows": "a key of the block header on the wire and on disk",
    "inserted_rows_total": "a key of the journal's DELIVERY record on disk",
    "ROWS": "the journal's four letters for records written from memory",
    "add_row": "rich's Table.add_row",
    "figsize": "matplotlib's argument",
    "Figure": "matplotlib's class",
}
"""Whole names that stay as they are, wherever they occur."""

TABLES = {
    "cluster/policies/onnx_export.py": "rows of batches [B, A] and of recorded observations",
    "cluster/report/charts.py": "rows of matrices [S, X]",
    "cluster/report/report.html.j2": "rows of HTML tables",
    "benchmarks/minatar.py": "rows of a table and of matrices",
    "tests/benchmarks/test_minatar.py": "rows of a table",
    "cluster/report/table.py": "rows of the table of metrics",
    "cluster/show/panel.py": "rows of the panel's tables",
    "actors/envs/discretize.py": "rows of the action table",
    "actors/policy.py": "rows of weight matrices",
    "learner/networks/*.py": "rows of matrices and batches",
    "learner/objectives/categorical.py": "rows of the matrices [B, N]",
    "replay_service/sharding.py": "rows of the count matrix [K, S]",
    "benchmarks/family_tasks.py": "rows of a Markdown table",
    "benchmarks/naive_study.py": "rows of a Markdown table",
    "benchmarks/presets.py": "rows of Markdown tables",
    "benchmarks/replay_memory.py": "rows of the printed table",
    "deploy/grafana/dashboards/qfleet.json": "Grafana's panel type",
    "docs/from-q-learning-to-dqn.md": "rows of the tables in the text and of tabular Q-learning",
    "tests/actors/envs/test_atari.py": "rows of images and of weight matrices",
    "tests/actors/envs/test_discretize.py": "rows of the action table",
    "tests/deploy/test_prometheus_files.py": "Grafana's panel type",
    "tests/learner/networks/*.py": "rows of matrices and batches",
    "tests/learner/objectives/*.py": "rows of batches [B, A] and [B, A, N]",
}
"""Files in which a row is one of a matrix or of a table -> which."""

PLOTS = {
    "benchmarks/learning_curves.py": "matplotlib, and a figure of a paper",
    "benchmarks/naive_study.py": "matplotlib",
    "cluster/report/*": "figures of the report",
    "learner/networks/torsos.py": "a figure of a paper",
    "tests/cluster/report/test_report.py": "figures of the report",
}
"""Files in which a figure is a plot -> whose."""

ALLOWED: dict[tuple[str, str], str] = {
    ("cluster/settings/renames.py", "*"): "the one table from old names to new ones",
    ("tests/cluster/settings/test_renames.py", "*"): "the test of that table",
    ("CHANGELOG.md", "*"): "says what was renamed",
    ("tests/test_words.py", "*"): "this list",
}
"""(file, word) -> why it may stand there."""

SKIPPED = {
    "LICENSE": "not our wording",
    "*.svg": "drawn by matplotlib",
    "tests/data/run_6afb764/*": "written by an older version",
}
"""Files that are not read -> why."""

_NAME = re.compile(r"[^\W\d_]\w*|_\w+", re.ASCII)
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ESCAPE = re.compile(r"\\[abfnrtv]")


class Found(NamedTuple):
    line: int
    word: str

    def __str__(self) -> str:
        word = self.word.lower()
        instead = {**FORBIDDEN, **TABLE_WORDS, **PLOT_WORDS}.get(word, "the American spelling")
        return f"{self.line}: {self.word} ({instead})"


def words(text: str) -> Iterator[Found]:
    """Every word of a text, identifiers in their parts; names that stay as they are left out."""
    for number, line in enumerate(text.splitlines(), 1):
        for name in _NAME.findall(_ESCAPE.sub(" ", line)):
            if name not in NAMES:
                yield from (Found(number, part) for part in _PART.findall(name))


def not_ours(text: str) -> list[Found]:
    """The words of a text that the rules name, those of tables and plots included."""
    named = {*FORBIDDEN, *TABLE_WORDS, *PLOT_WORDS}
    return [
        found
        for found in words(text)
        if found.word.lower() in named or found.word.lower().startswith(BRITISH)
    ]


def exception(file: str, word: str) -> tuple[str, str] | None:
    """The exception that lets the word stand in the file, as (file pattern, kind of exception)."""
    word = word.lower()
    for allowed, kind in ((TABLES, TABLE_WORDS), (PLOTS, PLOT_WORDS)):
        for pattern in allowed:
            if word in kind and fnmatch(file, pattern):
                return pattern, next(iter(kind))
    return next(((pattern, of) for pattern, of in ALLOWED if file == pattern and of in ("*", word)), None)


def tracked_files() -> list[str]:
    """Paths of the project's text files, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    wanted = [file for file in listed if not any(fnmatch(file, pattern) for pattern in SKIPPED)]
    return [file for file in wanted if (ROOT / file).is_file()]


def text_of(file: str) -> str:
    """A file's path, as its first line's first words, and its text."""
    return f"{file} {(ROOT / file).read_text('utf-8')}"


def findings(files: list[str]) -> list[str]:
    """file:line: word, for every word that must not stand where it stands."""
    return [
        f"{file}:{found}"
        for file in files
        for found in not_ours(text_of(file))
        if exception(file, found.word) is None
    ]


TOPS = sorted({file.split("/")[0] for file in tracked_files()})


@pytest.mark.parametrize("top", TOPS)
def test_words_are_those_of_the_field(top: str) -> None:
    found = findings([file for file in tracked_files() if file.split("/")[0] == top])
    assert not found, "\n" + "\n".join(found)


def test_every_exception_is_needed_and_has_a_reason() -> None:
    used = {
        exception(file, found.word)
        for file in tracked_files()
        for found in not_ours(text_of(file))
        if not file.endswith("test_words.py")
    }
    listed = {*((file, "row") for file in TABLES), *((file, "figure") for file in PLOTS), *ALLOWED}
    assert listed - used == {("tests/test_words.py", "*")}
    assert all((*NAMES.values(), *TABLES.values(), *PLOTS.values(), *ALLOWED.values(), *SKIPPED.values()))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def begin_cut(self): ...", ["cut"]),
        ("class CutState: ...", ["Cut"]),
        ("CUT_SECONDS = 1  # no shortcut, executes", ["CUT"]),
        ('say("a\\nrow")  # a figure', ["row", "figure"]),
        ("learner.optimiser: adam", ["optimiser"]),  # codespell:ignore optimiser
        ("table.add_row(header['num_rows'])", []),
        ("qfleet_unconfirmed_transitions", ["unconfirmed"]),
        ("the arrow, a throw, disfigured", []),
    ],
)
def test_words_are_found_in_names_strings_comments_and_keys(text: str, found: list[str]) -> None:
    assert [word.word for word in not_ours(text)] == found


def test_a_finding_tells_where_and_what_instead() -> None:
    assert [str(found) for found in not_ours("x = 1\n\nstory = 2")] == ["3: story (description, traceback)"]
    assert exception("cluster/show/panel.py", "rows") == ("cluster/show/panel.py", "row")
    assert exception("cluster/show/panel.py", "figure") is None
    assert exception("CHANGELOG.md", "cut") == ("CHANGELOG.md", "*")
