"""Temporary folders of runs, for sockets and other files that no run keeps.

Owns their names and the removal of those whose driver is dead; must not import ray.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "qf-"
_LOCK = "driver"


@contextmanager
def temp_folder() -> Iterator[Path]:
    """A new folder that only this user can enter, removed after the block.

    A driver that is killed leaves its folder: the next one removes it. It is not in the run directory because
    a Unix socket's path is limited to 107 bytes.
    """
    base = Path(tempfile.gettempdir())
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


def _remove_abandoned(base: Path) -> None:
    for lock in base.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
