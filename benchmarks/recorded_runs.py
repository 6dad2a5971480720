"""The finished runs of a study, kept as JSON so that an interrupted study can be continued.

Owns the file format, reading files of JSON lines, and putting a table into a page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Run = TypeVar("Run", bound="DataclassInstance")


def read_runs(path: Path, kind: type[Run]) -> list[Run]:
    """The runs in a file; none if there is no file."""
    if not path.exists():
        return []
    runs: list[Run] = msgspec.convert(json.loads(path.read_text(encoding="utf-8")), list[kind])  # type: ignore[valid-type]
    return runs


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Writes the runs as a JSON array with a line for each run."""
    lines = ",\n".join(json.dumps(asdict(run)) for run in runs)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def between(page: str, begins: str, ends: str, text: str) -> str:
    """The page with other text between two marks. Raises ValueError where a mark is missing."""
    before, begin, rest = page.partition(begins)
    _, end, after = rest.partition(ends)
    if not (begin and end):
        raise ValueError(f"the page lacks {begins} or, after it, {ends}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
