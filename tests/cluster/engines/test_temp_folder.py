"""Temporary folders: nobody else may enter them, and the next start removes those of dead drivers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.engines.temp_folder import temp_folder


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_only_this_user_may_enter_and_afterwards_it_is_gone(base: Path) -> None:
    with temp_folder() as folder:
        assert folder.parent == base
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "within").mkdir()
    assert list(base.iterdir()) == []


def test_the_next_start_removes_what_a_killed_driver_left_and_nothing_else(base: Path) -> None:
    program = (
        "import os, signal, tempfile; from cluster.engines.temp_folder import temp_folder\n"
        f"tempfile.tempdir = {str(base)!r}\n"
        "with temp_folder() as folder:\n"
        "    (folder / 'ray').mkdir()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    (abandoned,) = base.iterdir()
    (base / "qf-foreign").mkdir()
    with temp_folder() as first, temp_folder() as second:
        assert not abandoned.exists()
        assert {path.name for path in base.iterdir()} == {first.name, second.name, "qf-foreign"}
