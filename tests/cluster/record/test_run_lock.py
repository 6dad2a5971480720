"""A run directory is locked, and file systems that lack something are told by a sentence."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cluster.record.run_lock import LOCK_FILES, RunLock
from cluster.settings.config import ConfigError


def fail(monkeypatch: pytest.MonkeyPatch, module: object, name: str, number: int) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, unsupported)


def test_a_lock_is_exclusive_and_leaves_nothing_but_its_file(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    assert lock.weaknesses == ()
    with pytest.raises(ConfigError, match="another process is running in it"):
        RunLock(tmp_path)
    lock.close()
    RunLock(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILES[0]]


def test_a_lustre_without_flock_has_the_other_lock_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, fcntl, "flock", errno.ENOSYS)
    lock = RunLock(tmp_path)
    assert lock.weaknesses == ()
    lock.close()
    fail(monkeypatch, fcntl, "lockf", errno.ENOSYS)
    lock = RunLock(tmp_path)
    assert len(lock.weaknesses) == 1
    assert "no locks" in lock.weaknesses[0]


def test_missing_links_and_folder_syncs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def no_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    fail(monkeypatch, os, "link", errno.ENOSYS)
    links, syncs = RunLock(tmp_path).weaknesses
    assert "no hard links" in links
    assert "cannot sync folders" in syncs


def test_other_errors_name_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, fcntl, "flock", errno.EIO)
    with pytest.raises(ConfigError, match="cannot be written"):
        RunLock(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        RunLock(tmp_path / "missing")
