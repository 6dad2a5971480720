"""Makes processes that hang write their stacks (SIGUSR1), and kills them (SIGKILL).

Owns both signals and the names of the stack files; must not import ray.
"""

import faulthandler
import os
import platform
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.engines.process_info import ProcessInfo

_STACK_SECONDS = 3.0
_SETTLED_SECONDS = 0.1


def answer_stack_requests(logs: Path, name: str) -> None:
    """Makes this process write the stack of every thread to `logs` when another one calls request_stack.

    If the folder does not exist (a role on another machine), requests are ignored.
    """
    if not logs.is_dir():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    else:
        # Left open, because the handler writes to it while the process hangs.
        file = _stack_path(logs, name).open("a", encoding="utf-8")
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def request_stack(process_info: ProcessInfo | None) -> None:
    """Makes a role and the processes that it forked write their stacks; ignores a role on another machine."""
    for number, process in enumerate(_writers(process_info)):
        # They write to one file, a few characters at a time: two at once would be mixed.
        time.sleep(_SETTLED_SECONDS if number else 0.0)
        _request(process)


def stack_of(process_info: ProcessInfo | None, logs: Path, name: str) -> str:
    """The stacks of a role and of the processes that it forked, as soon as they are written.

    Each process is asked once the one before it has written. Empty if no stack comes within seconds: the role
    is stopped, gone or on another machine.
    """
    file = _stack_path(logs, name)
    known = _size(file)
    deadline = time.monotonic() + _STACK_SECONDS
    for process in _writers(process_info):
        before = _size(file)
        _request(process)
        _wait_for_stack(file, before, deadline)
    if _size(file) == known:
        return ""
    with file.open(encoding="utf-8", errors="replace") as stacks:
        stacks.seek(known)
        return stacks.read()


def end_process(process_info: ProcessInfo | None) -> None:
    """Kills a role's process, even a stopped one, and its descendants; ignores a role on another machine."""
    for process in _with_descendants(process_info):
        with suppress(psutil.Error):
            process.kill()


def _with_descendants(process_info: ProcessInfo | None) -> list[psutil.Process]:
    """A role's process and its descendants; empty if it is gone, on another machine, or this process."""
    if process_info is None or process_info.host != platform.node() or process_info.pid == os.getpid():
        return []
    try:
        process = psutil.Process(process_info.pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _writers(process_info: ProcessInfo | None) -> list[psutil.Process]:
    """The processes of a role that write their stack when asked: the signal would end any other child."""
    role = _with_descendants(process_info)
    return [*role[:1], *filter(_answers, role[1:])]


def _request(process: psutil.Process) -> None:
    with suppress(psutil.Error):
        process.send_signal(signal.SIGUSR1)


def _wait_for_stack(file: Path, before: int, deadline: float) -> None:
    """Waits until the file has grown and grows no more, or until the deadline (monotonic seconds)."""
    size = before
    while time.monotonic() < deadline:
        time.sleep(_SETTLED_SECONDS)
        last, size = size, _size(file)
        if size > before and size == last:
            return


def _answers(process: psutil.Process) -> bool:
    """Whether a process has a handler for SIGUSR1 (on Linux; elsewhere False)."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def _stack_path(logs: Path, name: str) -> Path:
    return logs / f"{name.replace(' ', '-')}.stacks"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
