"""The servers of the Ray that a run uses: whether they live, and their end.

Owns the watch over them; must not import torch or gymnasium.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import psutil

from cluster.engines.engine import EngineDied

AnswerT = TypeVar("AnswerT")

_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 4.0
_END_SECONDS = 5.0
_POLL_SECONDS = 0.02
_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_WHY = (
    "somebody ended it, for instance by `ray stop`, which ends every Ray of a user on a machine, "
    "or the machine ran out of memory"
)


class Polled(Generic[AnswerT]):
    """The newest answer to a question that may never be answered: a thread asks it every second.

    After an error it is not asked again.
    """

    def __init__(self, ask: Callable[[], AnswerT], first: AnswerT) -> None:
        """first: the answer before there is one."""
        self.newest = first
        self._closed = threading.Event()
        threading.Thread(target=self._poll, args=(ask,), daemon=True).start()

    def close(self) -> None:
        """Asks no more."""
        self._closed.set()

    def _poll(self, ask: Callable[[], AnswerT]) -> None:
        with suppress(Exception):  # a Ray that is gone or shut down, which the watch notices by itself
            while not self._closed.wait(_LOOK_SECONDS):
                self.newest = ask()


class ServerWatch:
    """Looks whether the servers of a Ray live: by their processes, and by questions to a GCS elsewhere."""

    def __init__(
        self, servers: Mapping[str, psutil.Process], gcs_answers: Callable[[float], bool] | None
    ) -> None:
        """servers: those on this machine. gcs_answers: asks a GCS elsewhere, see question_to_gcs."""
        self._servers = dict(servers)
        self._closing = ExitStack()
        self._has_ended = _ends_of(servers.values(), self._closing)
        self._looked_at = 0.0
        self._told: set[str] = set()
        self._gcs = Polled(partial(gcs_answers, _ANSWER_SECONDS), True) if gcs_answers else None
        self.said = False
        """Whether a death was raised, as happens once."""

    def look(self) -> None:
        """Raises EngineDied, once, if a server is dead, is about to be ended, or does not answer."""
        if self.said:
            return
        dead = (
            [name for name, process in self._servers.items() if _is_dead(process)]
            if self._has_ended()
            else []
        )
        problem = (
            f"the GCS of the run's Ray does not answer: {_WHY}" if self._gcs and not self._gcs.newest else ""
        )
        if dead:
            problem = f"{self._named(dead)} of the run's Ray died: {_WHY}"
        elif not problem and time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._looked_at = time.monotonic()
            told = [name for name, process in self._servers.items() if _is_told_to_end(process)]
            # Whoever signals every process of a run means the driver, which hears of it within a second.
            if set(told) & self._told:
                problem = f"{self._named(told)} of the run's Ray got SIGTERM: {_WHY}"
            self._told = set(told)
        if problem:
            self.said = True
            # Without its raylet, Ray ends a driver that reads a value in shared memory; and a raylet ends
            # with its agents.
            raise EngineDied(problem, objects_gone=bool(set(dead) - {"gcs_server"}))

    def _named(self, names: Sequence[str]) -> str:
        return ", ".join(f"{name} (process {self._servers[name].pid})" for name in names)

    def close(self) -> None:
        """Ends the questions to the GCS, and forgets the processes."""
        self._closing.close()
        if self._gcs is not None:
            self._gcs.close()


def _ends_of(processes: Iterable[psutil.Process], closing: ExitStack) -> Callable[[], bool]:
    """A function that says, in microseconds on Linux, whether one of the processes may have ended."""
    ends = select.poll()
    try:
        for process in processes:
            handle = os.pidfd_open(process.pid)
            closing.callback(os.close, handle)
            ends.register(handle, select.POLLIN)
    except (AttributeError, OSError):  # another system; a process that is gone already
        return lambda: True
    return lambda: bool(ends.poll(0))


def end_all(processes: Mapping[int, psutil.Process]) -> None:
    """Kills processes at once and waits for their end, five seconds at most."""
    for process in processes.values():
        with suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + _END_SECONDS
    # Not psutil.wait_procs, which waits for zombies, too: their parents may never ask for them.
    while not all(map(_is_dead, processes.values())) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def with_descendants(servers: Mapping[str, psutil.Process]) -> dict[int, psutil.Process]:
    """Pid -> process of the servers and of all that they started: agents and roles."""
    found = {}
    for server in servers.values():
        with suppress(psutil.Error):
            for process in (server, *server.children(recursive=True)):
                found[process.pid] = process
    return found


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() in _DEAD
    except psutil.NoSuchProcess:
        return True


def _is_told_to_end(process: psutil.Process) -> bool:
    """Whether a SIGTERM that the process blocks waits for it (on Linux; elsewhere False)."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    waiting = next((line for line in status.splitlines() if line.startswith("ShdPnd:")), "ShdPnd: 0")
    return bool(int(waiting.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
