"""Temporary folders: nobody else may enter them, and the next start removes those of dead drivers."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engines.temp_folder import is_too_long, temp_folder


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short)


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


def test_a_folder_in_which_sockets_would_not_fit_lies_in_tmp(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_too_long()
    long = base / ("t" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert is_too_long()
    with temp_folder() as folder:
        assert folder.parent == Path("/tmp")
        sockets = folder / "ray" / "session_2026-11-29_04-52-00_123456_4194304" / "sockets"
        sockets.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(sockets / "plasma_store"))
