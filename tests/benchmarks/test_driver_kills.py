"""The driver is killed at random moments, and the same command goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.driver_kills import Persist, kill_rounds


@pytest.mark.slow
@pytest.mark.parametrize("persist", ["continuous", "checkpoint"])
def test_whenever_the_driver_is_killed_the_same_command_goes_on(tmp_path: Path, persist: Persist) -> None:
    found = kill_rounds(tmp_path, 4, persist, random.Random(3))
    assert found.faults == ()
    assert found.lines > 20
