"""The lock of a run directory, and what its file system cannot do.

Owns the lock file and the fallbacks for lesser file systems; must not import torch or ray.
"""

import errno
import fcntl
from pathlib import Path

from cluster.settings.config import ConfigError
from replay_service.journal.durable_files import UNSUPPORTED, link_or_copy, sync_folder

_LOCK = ".lock"
_PROBE = ".lock.probe"
LOCK_FILES = (_LOCK, _PROBE)
"""The files that a lock leaves in its folder."""


class RunLock:
    """Keeps other processes out of a run directory until it is closed or this process ends, however it ends.

    weaknesses: what the folder's file system cannot do, and what that costs; one sentence each.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if another process has the lock or the folder cannot be written."""
        self.path = path
        try:
            self._file = (path / _LOCK).open("w")
            try:
                self.weaknesses = (*self._lock(), *_weaknesses(path))
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise ConfigError(f"run directory {path}: cannot be written: {error}") from None

    def fileno(self) -> int:
        """The descriptor; whichever process inherits it holds the lock, too."""
        return self._file.fileno()

    def close(self) -> None:
        """Lets another process run here."""
        self._file.close()

    def _lock(self) -> tuple[str, ...]:
        # Lustre may know neither; some network file systems know only the second.
        for lock in (fcntl.flock, fcntl.lockf):
            try:
                lock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"run directory {self.path}: another process is running in it") from None
            except OSError as error:
                if error.errno not in (*UNSUPPORTED, errno.ENOLCK):
                    raise
            else:
                return ()
        return ("its file system has no locks: nothing keeps a second process from running in it, too",)


def _weaknesses(path: Path) -> tuple[str, ...]:
    """What the file system lacks for checkpoints. Raises OSError."""
    probe = path / _PROBE
    probe.unlink(missing_ok=True)
    has_links = link_or_copy(path / _LOCK, probe)
    probe.unlink()
    weaknesses = []
    if not has_links:
        weaknesses.append("its file system has no hard links: each checkpoint is a copy of the whole replay")
    if not sync_folder(path):
        weaknesses.append(
            "its file system cannot sync folders: a machine that loses power may lose the newest checkpoint"
        )
    return tuple(weaknesses)
