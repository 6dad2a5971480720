"""Who and where a role is: its process, its machine, and where its code came from.

Owns the check that all our packages come from one root; must not import ray.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Presence:
    """What a role says when it is up: its process, and where its code came from."""

    pid: int
    host: str
    root: str


def presence() -> Presence:
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
    return Presence(os.getpid(), platform.node(), roots.pop())


def require_same_root(other: Presence) -> None:
    """Raises ImportError where a process of this machine runs other code than this one does."""
    own = presence()
    if other.host == own.host and other.root != own.root:
        raise ImportError(f"process {other.pid} runs the code of {other.root}, this one that of {own.root}")
