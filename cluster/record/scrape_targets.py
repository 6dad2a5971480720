"""Service discovery for Prometheus: a folder with one file per run of this user.

Owns that folder and its place in the home folder; must not import torch or ray.
"""

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.engines.process_info import is_alive, start_ticks


def targets_folder() -> Path:
    """$XDG_STATE_HOME/qfleet/targets, or ~/.local/state/qfleet/targets if the variable is not set.

    Raises FileNotFoundError if this user has no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME") or home_folder() / ".local" / "state"
    return Path(state) / "qfleet" / "targets"


def home_folder() -> Path:
    """The user's home folder. Raises FileNotFoundError if neither HOME nor the system names one."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise FileNotFoundError("HOME is not set, and this user has no home folder") from error


@contextmanager
def advertised(folder: Path, address: str, labels: Mapping[str, str]) -> Iterator[None]:
    """Within the block, Prometheus's file_sd finds the target host:port with its labels in `folder`.

    First removes the files of processes on this machine that have ended. Raises OSError if the folder cannot
    be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _prune(folder)
    pid, port = os.getpid(), address.rpartition(":")[2]
    file = folder / f"{platform.node()}-{pid}-{start_ticks(pid)}-{port}.json"
    written = file.with_suffix(".new")  # Prometheus reads *.json and must not see an incomplete file
    written.write_text(json.dumps([{"targets": [address], "labels": dict(labels)}]), encoding="utf-8")
    written.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _prune(folder: Path) -> None:
    """Removes files left by runs on this machine that were killed, and no file of another form."""
    form = re.compile(rf"{re.escape(platform.node())}-([0-9]{{1,9}})-([0-9]+)-[0-9]+")
    for file in folder.iterdir():
        own = form.fullmatch(file.stem)
        if own is not None and not is_alive(int(own[1]), int(own[2])):
            file.unlink(missing_ok=True)
