"""Roles that hang: each answers SIGUSR1 by writing every thread's stack to a file; the frozen are ended.

Owns the signals and the file name; must not import ray.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import signal
from pathlib import Path

from cluster.presence import Presence


def answer_stack_requests(logs: Path, name: str) -> None:
    """Registers this process; without the folder (a role on another machine) requests are ignored."""
    if not logs.is_dir():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    else:
        # Left open on purpose: the handler writes to this very file while the process hangs.
        file = (logs / f"{name.replace(' ', '-')}.stacks").open("a", encoding="utf-8")
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def end_process(presence: Presence | None) -> None:
    """Ends the role's process at once, also one that is stopped; one on another machine is passed over."""
    _signal(presence, signal.SIGKILL)


def request_stack(presence: Presence | None) -> None:
    """Asks the role for its stack; one that is gone, or on another machine, is passed over."""
    _signal(presence, signal.SIGUSR1)


def _signal(presence: Presence | None, number: signal.Signals) -> None:
    if presence is not None and presence.host == platform.node() and presence.pid != os.getpid():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(presence.pid, number)
