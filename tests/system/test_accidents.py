"""Every accident of docs/failures.md, on every runtime, before and after the first checkpoint."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qfleet_processes import adopting_orphans

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.accidents import ACCIDENTS, Accident, play, problems  # noqa: E402
from benchmarks.failures import SMALL, Runtime, arguments  # noqa: E402
from benchmarks.followed_run import FollowedRun  # noqa: E402

# The others are slow only together.
QUICK = {
    ("term", "local", True),
    ("int", "serial", False),
    ("gcs", "ray", True),
}
LEFT_SECONDS = 10.0


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    """What a killed driver leaves is found among this process's children."""
    with adopting_orphans():
        yield


@pytest.mark.parametrize(
    ("accident", "runtime", "checkpoint"),
    [
        pytest.param(
            accident,
            runtime,
            checkpoint,
            id=f"{accident.name}-{runtime}-{'with' if checkpoint else 'without'}",
            marks=() if (accident.name, runtime, checkpoint) in QUICK else pytest.mark.slow,
        )
        for accident in ACCIDENTS
        for runtime in accident.runtimes
        for checkpoint in (False, True)
    ],
)
def test_a_run_ends_well(accident: Accident, runtime: Runtime, checkpoint: bool, tmp_path: Path) -> None:
    ended = play(accident, runtime, tmp_path, checkpoint=checkpoint)
    assert problems(accident, ended, checkpoint=checkpoint) == []


@pytest.mark.parametrize("runtime", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_killed_driver_leaves_no_process_and_its_folder_goes_with_the_next(
    runtime: str, tmp_path: Path
) -> None:
    run = FollowedRun([*arguments(SMALL), "--runtime", runtime], tmp_path / "run")
    try:
        run.start()
        run.wait_for(lambda: run.newest()["checkpoints_total"] > 0, "a checkpoint")
        run.finish(signal.SIGKILL)
        assert run.left(LEFT_SECONDS) == []
        run.start("--resume", "auto")
        run.wait_for(lambda: run.output().count("resumed from checkpoint"), "the next start")
        assert len([name for name in os.listdir(run.temp) if name.startswith("qf-")]) == (runtime == "ray")
        assert run.finish(signal.SIGTERM) == 143
        assert run.left_files() == []
    finally:
        run.close()
