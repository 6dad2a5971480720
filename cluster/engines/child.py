"""Processes that load what others need, and those that are forked off them: how they begin and end.

Owns what subprocess.Popen and the interpreter do for programs; loads nothing but what it is told by name.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from cluster.engines.own_code import OWN_ROOT
from cluster.engines.threads import SINGLE_THREADED

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Child:
    """A child that was forked; it has what is used of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None as long as it lives."""
        return self._take(os.WNOHANG)

    def wait(self) -> None:
        """Waits for its end."""
        self._take(0)

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)

    def _take(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # some other code has waited for it
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def start_loader(code: str, connection: socket.socket, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a process that will load and fork, with an interpreter of its own, one thread and no output.

    code: in Python; its sys.argv[1:] are OWN_ROOT, the descriptor of the connection, and the arguments.
    """
    return subprocess.Popen(
        # -P: a folder of the user's own cannot shadow what this imports.
        [sys.executable, "-P", "-c", code, str(OWN_ROOT), str(connection.fileno()), *arguments],
        pass_fds=[connection.fileno()],
        env={**os.environ, **SINGLE_THREADED},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def load(modules: Sequence[str]) -> None:
    """Imports the modules for all processes that will be forked off this one."""
    with suppress(Exception):  # a fork that needs what is missing raises it again, and says so
        for module in modules:
            import_module(module)
    # Objects that are never looked at stay in memory that all forks share.
    gc.collect()
    gc.freeze()


def fork(work: Callable[[], int | None]) -> int:
    """Forks a process that ends with the status that work() returns, by default 0; returns its pid.

    If work() raises, it prints the traceback and ends with 1. Nothing else is done at its end: taking down an
    interpreter that has loaded torch takes a quarter of a second, and saves nothing.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = work() or 0
    except BaseException:  # noqa: BLE001 - a forked process must never go on as its parent
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def become(name: str) -> None:
    """Gives a forked process a name and random numbers of its own."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"qf {name}"[:15], encoding="ascii")
    if "numpy" in sys.modules:
        import numpy as np

        # Environments may draw from it, and every process would draw the same.
        np.random.seed()  # noqa: NPY002


def stop_with(parent: int) -> None:
    """Makes the death of the process that has started this one stop this one as SIGTERM does (on Linux)."""
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(f"process {parent}, which has started this one, is dead")


def prctl(option: int, value: int) -> None:
    """The system call of Linux that sets a property of this process."""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
