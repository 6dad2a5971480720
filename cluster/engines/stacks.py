"""Roles that hang: each answers SIGUSR1 by writing every thread's stack to a file; the frozen are ended.

Owns the signals and the file name; must not import ray.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import signal
import time
from pathlib import Path

import psutil

from cluster.engines.process_info import ProcessInfo

_STACK_SECONDS = 3.0
_SETTLED_SECONDS = 0.1


def answer_stack_requests(logs: Path, name: str) -> None:
    """Registers this process; without the folder (a role on another machine) requests are ignored."""
    if not logs.is_dir():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    else:
        # Left open on purpose: the handler writes to this very file while the process hangs.
        file = _stack_path(logs, name).open("a", encoding="utf-8")
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def end_process(process_info: ProcessInfo | None) -> None:
    """Ends the role's process at once, also one that is stopped, and all that it started.

    One on another machine is passed over.
    """
    started = _started_by(process_info)
    _signal(process_info, signal.SIGKILL)
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()


def stack_of(process_info: ProcessInfo | None, logs: Path, name: str) -> str:
    """The stacks of the role's process, and of processes that it forked, as soon as they are written.

    Empty where none came: of a process that is stopped or gone, or is on another machine.
    """
    file = _stack_path(logs, name)
    known = file.stat().st_size if file.exists() else 0
    request_stack(process_info)
    for process in _started_by(process_info):
        # Those that were forked answer as the role does; others this signal would end.
        with contextlib.suppress(psutil.Error, OSError):
            if _catches(process.pid, signal.SIGUSR1):
                process.send_signal(signal.SIGUSR1)
    size, deadline = known, time.monotonic() + _STACK_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_SETTLED_SECONDS)
        before, size = size, file.stat().st_size if file.exists() else 0
        if size > known and size == before:
            break
    if size == known:
        return ""
    with file.open(encoding="utf-8", errors="replace") as stacks:
        stacks.seek(known)
        return stacks.read()


def _started_by(process_info: ProcessInfo | None) -> list[psutil.Process]:
    """The living descendants of the role's process, if that is on this machine and not this one."""
    if process_info is None or process_info.host != platform.node() or process_info.pid == os.getpid():
        return []
    try:
        return psutil.Process(process_info.pid).children(recursive=True)
    except psutil.Error:
        return []


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for the signal (Linux; elsewhere False)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _stack_path(logs: Path, name: str) -> Path:
    return logs / f"{name.replace(' ', '-')}.stacks"


def request_stack(process_info: ProcessInfo | None) -> None:
    """Asks the role for its stack; one that is gone, or on another machine, is passed over."""
    _signal(process_info, signal.SIGUSR1)


def _signal(process_info: ProcessInfo | None, number: signal.Signals) -> None:
    if process_info is not None and process_info.host == platform.node() and process_info.pid != os.getpid():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process_info.pid, number)
