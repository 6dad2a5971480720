"""Runs on file systems that lack what checkpoints and locks would like to have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from qfleet_processes import import_path, set_flags
from qfleet_serial import SMALL

from cluster.checkpoints.checkpoint import checkpoint_folders, read_checkpoint

_SHIM = """
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int fd, int operation) { errno = ENOSYS; return -1; }
int link(const char *from, const char *to) { errno = ENOSYS; return -1; }
int linkat(int a, const char *from, int b, const char *to, int flags) { errno = ENOSYS; return -1; }
int fsync(int fd) {
    struct stat found;
    if (fstat(fd, &found) == 0 && S_ISDIR(found.st_mode)) { errno = EINVAL; return -1; }
    return syscall(SYS_fsync, fd);
}
"""
_COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that takes flock, links and the syncing of folders away from whoever loads it first."""
    if _COMPILER is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(_SHIM)
    library = folder / "shim.so"
    subprocess.run([_COMPILER, "-shared", "-fPIC", "-w", "-o", library, folder / "shim.c"], check=True)
    return library


def train(shim: Path, run_dir: Path, *more: str) -> str:
    """The output of a run to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster.main", "train", *more, "--run-dir", str(run_dir)],
        env={**os.environ, "PYTHONPATH": import_path(), "LD_PRELOAD": str(shim)},
        cwd=run_dir.parent,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("persist", ["checkpoint", pytest.param("continuous", marks=pytest.mark.slow)])
def test_what_a_file_system_lacks_is_said_once_and_the_run_goes_on(
    shim: Path, tmp_path: Path, persist: str
) -> None:
    run_dir = tmp_path / "run"
    settings = [*SMALL, "checkpoint.every_updates=100", f"replay.persist={persist}"]
    said = train(shim, run_dir, *set_flags(settings))
    assert said.count("no hard links") == 1
    assert said.count("cannot sync folders") == 1
    # There is another lock.
    assert "no locks" not in said
    folders = checkpoint_folders(run_dir / "checkpoints")
    assert len(folders) == 2
    assert all(read_checkpoint(folder).learner.version for folder in folders)
    said = train(shim, run_dir, "--resume", *set_flags(["stop.updates=250"]))
    assert "resumed from checkpoint 1" in said
    assert said.count("no hard links") == 1
