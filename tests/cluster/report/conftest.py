"""A run that the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest
from qfleet_serial import SMALL, train_serial


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real serial run."""
    run_dir = tmp_path_factory.mktemp("report") / "real"
    train_serial(run_dir, [*SMALL, "metrics.every_seconds=0.02"])
    return run_dir
