"""Where Prometheus finds the runs of this user: a folder with one service-discovery file for each run.

Owns that folder; must not import torch or ray.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil


def targets_folder() -> Path:
    """$XDG_STATE_HOME/qfleet/targets; without the variable ~/.local/state/qfleet/targets."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "qfleet" / "targets"


@contextmanager
def advertised(folder: Path, address: str, labels: Mapping[str, str]) -> Iterator[None]:
    """Within the block, Prometheus's file_sd finds the target host:port, with labels, in `folder`.

    Entries of this machine whose process is gone are removed first. Raises OSError where the folder cannot
    be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _prune(folder)
    own, port = psutil.Process(), address.rpartition(":")[2]
    file = folder / f"{platform.node()}-{own.pid}-{int(own.create_time())}-{port}.json"
    written = file.with_suffix(".new")  # Prometheus reads *.json, and must not see half of one
    written.write_text(json.dumps([{"targets": [address], "labels": dict(labels)}]), encoding="utf-8")
    written.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _prune(folder: Path) -> None:
    """Removes what runs of this machine left behind when they were killed."""
    for file in folder.iterdir():
        host, *owner = file.stem.rsplit("-", 3)
        if host == platform.node() and len(owner) == 3 and not _is_alive(int(owner[0]), int(owner[1])):
            file.unlink(missing_ok=True)


def _is_alive(pid: int, began: int) -> bool:
    """Whether the process lives that began in this second; a pid alone comes round again."""
    try:
        # The system computes that time from its boot time, which may move by a second.
        return abs(psutil.Process(pid).create_time() - began) < 3.0
    except psutil.NoSuchProcess:
        return False
