"""Makes support/ importable by name, here and, through PYTHONPATH, in child processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent / "support"
sys.path.insert(0, str(SUPPORT))

from qfleet_processes import LocalRun, adopting_orphans  # noqa: E402


@pytest.fixture
def local_run(tmp_path: Path) -> Iterator[LocalRun]:
    """`qfleet train` in a process group of its own; whatever it leaves behind is ended with the test."""
    with adopting_orphans():
        run = LocalRun(tmp_path)
        try:
            yield run
        finally:
            run.destroy()
