"""A corridor to which a mishap happens once in a run, whichever process it lives in."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from qfleet_test_envs import Corridor, wait_for_ever


class Mishap(Corridor):
    """Does something bad in the given step of its life, as often as `folder` has a file to be removed.

    hang: first it starts a process in a session of its own, and notes its id in `folder`/child.
    leak: it holds 300 MB more with each step.
    """

    def __init__(self, folder: str, how: str, steps: int = 70) -> None:
        self.folder = Path(folder)
        self.how = how
        self.left = steps
        self.held: list[np.ndarray] = []

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        if self.left == 0 and self.takes_one():
            if self.how == "raise":
                raise RuntimeError("a passing cloud")
            if self.how == "hang":
                with subprocess.Popen(["sleep", "1000"], start_new_session=True) as child:
                    (self.folder / "child").write_text(str(child.pid))
                    wait_for_ever()
            if self.how == "leak":
                self.held.append(np.ones(300_000_000 // 8))
        return super().step(action)

    def takes_one(self) -> bool:
        for file in self.folder.glob("mishap-*"):
            try:
                file.unlink()
            except FileNotFoundError:
                continue
            return True
        return False


def allow(folder: Path, mishaps: int) -> str:
    """So many mishaps may happen; the folder as an argument."""
    folder.mkdir()
    for number in range(mishaps):
        (folder / f"mishap-{number}").touch()
    return str(folder)
