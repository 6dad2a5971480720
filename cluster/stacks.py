"""Stack dumps of roles that hang: each role answers SIGUSR1 by writing every thread's stack to a file.

Owns the signal and the file name; must not import ray.
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


def request_stack(presence: Presence | None) -> None:
    """Asks the role for its stack; one that is gone, or on another machine, is passed over."""
    if presence is not None and presence.host == platform.node() and presence.pid != os.getpid():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(presence.pid, signal.SIGUSR1)
