"""Who and where a role is: its process, its machine, and where its code came from.

Owns the check that all our packages are the same everywhere; must not import ray.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_PACKAGES = ("actors", "cluster", "learner", "replay_service")


@dataclass(frozen=True)
class ProcessInfo:
    """What a role says when it is up: its process, and where its code came from.

    relays_log: the run's folder is not on its machine, so its log lines are to be asked for.
    code: a digest of our packages' sources; empty where it is not known.
    """

    pid: int
    host: str
    root: str
    relays_log: bool = False
    code: str = ""


def process_info() -> ProcessInfo:
    """The presence of this process. Raises ImportError if our packages come from more than one root."""
    import actors
    import cluster
    import learner
    import replay_service

    roots = {
        str(Path(package.__file__ or "").resolve().parent.parent)
        for package in (actors, cluster, learner, replay_service)
    }
    if len(roots) != 1:
        raise ImportError(
            f"actors, cluster, learner and replay_service come from: {', '.join(sorted(roots))}; "
            "a folder of the same name shadows one of them: rename it or start from another folder"
        )
    root = roots.pop()
    return ProcessInfo(os.getpid(), platform.node(), root, code=_digest(root))


def require_same_code(other: ProcessInfo) -> None:
    """Raises ImportError where a process runs other code than this one does.

    On this machine it must come from the same folder, whose files may change while a run goes on; on another
    machine the files themselves must be the same.
    """
    own = process_info()
    if other.host == own.host and other.root != own.root:
        raise ImportError(f"process {other.pid} runs the code of {other.root}, this one that of {own.root}")
    if other.host != own.host and other.code and other.code != own.code:
        raise ImportError(
            f"process {other.pid} of {other.host} runs other code ({other.root}) than the driver on "
            f"{own.host} ({own.root}): bring the same version to every machine, or let Ray ship it with "
            "ray job submit --working-dir ."
        )


@lru_cache(maxsize=1)
def _digest(root: str) -> str:
    """Of the names and contents of our sources, as they were when this process first asked."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((Path(root) / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
