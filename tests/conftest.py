"""Makes support/ importable by name; keeps the user's own state folder as it is; a run to follow."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engines.threads import SINGLE_THREADED

# Read by numpy and torch when they load. As in a real run: threads of several workers would wait in turn.
os.environ.update(SINGLE_THREADED)

sys.path.append(str(Path(__file__).parent / "support"))

from qfleet_processes import LocalRun, adopting_orphans

WHOLE_RUNS = ("system", "deploy", "qfleet", "docs")
"""Folders whose tests start runs and clusters of many processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole runs take turns in one worker, beside all others in the other one: see `make test`."""
    root = Path(__file__).parent
    for item in items:
        file = item.path.relative_to(root)
        group = "whole runs" if file.parts[0] in WHOLE_RUNS else str(file)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs tell Prometheus of themselves in a folder of the test session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Commands that later tests start would inherit signals that a test left blocked, and never stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    left = signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert left == before, "the test left signals blocked"


@pytest.fixture
def local_run(tmp_path: Path) -> Iterator[LocalRun]:
    """`qfleet train` in a process group of its own; whatever it leaves behind is ended with the test."""
    with adopting_orphans():
        run = LocalRun(tmp_path)
        try:
            yield run
        finally:
            run.destroy()
