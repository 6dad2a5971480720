"""Temporary folders of runs, for sockets and other files that no run keeps.

Owns their names and the removal of those whose driver is dead; must not import ray.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "qf-"
_LOCK = "driver"
_SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux."""
_LONGEST_BELOW = f"/{_PREFIX}12345678/ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"
"""Ray's socket with the longest name in a folder of ours."""
_SHORT = Path("/tmp")


@contextmanager
def temp_folder() -> Iterator[Path]:
    """A new folder that only this user can enter, removed after the block.

    A driver that is killed leaves its folder: the next one removes it. It is not in the run directory, whose
    path may be too long for sockets.
    """
    base = _SHORT if is_too_long() else Path(tempfile.gettempdir())
    _remove_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))  # of mode 700
    try:
        with (folder / "new").open("w") as lock:
            # The system gives a lock back with the death of its process; pids and clocks would say less.
            with suppress(OSError):  # a file system without locks: nobody takes this folder for abandoned
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / "new").rename(folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_too_long() -> bool:
    """Whether the path of the system's temporary folder (TMPDIR) leaves no room for those of sockets."""
    return len(os.fsencode(tempfile.gettempdir() + _LONGEST_BELOW)) > _SOCKET_BYTES


def _remove_abandoned(base: Path) -> None:
    for lock in base.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
