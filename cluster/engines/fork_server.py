"""Fork servers: processes that have loaded what roles need, and fork them in milliseconds.

Owns both sides, and the ends of roles' processes; must not import torch, gymnasium or ray by itself.

Python's own forkserver cannot be used: there is one for each process, it imports the caller's `__main__`,
and it neither passes connections on nor ends what its children started.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from cluster.engines.child import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    Child,
    become,
    fork,
    load,
    prctl,
    start_loader,
)
from cluster.engines.own_code import own_code_first
from cluster.engines.role_process import RoleServer
from cluster.engines.signals import STOP_SIGNALS, leave_signals_to_driver
from cluster.engines.threads import SINGLE_THREADED
from cluster.engines.wire import DescriptorsLost, Line, Message, Packed

_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from cluster.engines.fork_server import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_CLOSE_SECONDS = 2.0
_REAP_SECONDS = 1.0


@dataclass(frozen=True)
class _Load:
    """Tells a fork server what to load. path: its sys.path."""

    path: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Spawn:
    """Asks for a role; its class and arguments, and the engine's connection to it come along."""

    number: int
    name: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Kill:
    """Asks for the end of a role and of all that it started."""

    number: int


@dataclass(frozen=True)
class _Loaded:
    """Says that a fork server has loaded everything."""


@dataclass(frozen=True)
class _Ended:
    """Says that a role's process has ended. status: as os.waitstatus_to_exitcode gives it."""

    number: int
    status: int


class ForkServer:
    """A fork server, as the process that has started it sees it."""

    def __init__(self, modules: tuple[str, ...], *, forked: bool = False) -> None:
        """modules: what it loads before it forks any role. forked: see ForkServers.start."""
        self._is_loaded = False
        self._statuses: dict[int, int] = {}
        own, theirs = socket.socketpair()
        with theirs:
            self._process: subprocess.Popen[bytes] | Child = (
                _fork(theirs) if forked else start_loader(_CODE, theirs, [str(os.getpid())])
            )
        self.line = Line(own)
        path = tuple(entry or str(Path.cwd()) for entry in sys.path)
        self.line.send(_Load(path, modules))

    @property
    def is_alive(self) -> bool:
        """Whether it can fork roles, now or once it has loaded everything."""
        return self._process.poll() is None and self.line.fileno() >= 0

    def take(self, message: Message) -> None:
        """Takes in what the server says."""
        if isinstance(message.head, _Ended):
            self._statuses[message.head.number] = message.head.status
        else:
            self._is_loaded = True

    def miss(self, error: DescriptorsLost) -> None:
        """Never happens: no descriptors come from a fork server."""

    def lose(self) -> None:
        """Does nothing: the connections to its roles have ended, too."""

    def status_of(self, number: int, wait_seconds: float) -> int | None:
        """How a role's process has ended, once the server has said so; None if it does not in time."""
        if self.line.fileno() < 0:  # the server is gone
            return self._statuses.pop(number, None)
        deadline, watch = time.monotonic() + wait_seconds, select.poll()
        watch.register(self.line, select.POLLIN)
        with suppress(OSError, EOFError):
            while number not in self._statuses and (left := deadline - time.monotonic()) > 0.0:
                watch.poll(left * 1000)
                while (message := self.line.receive()) is not None:
                    self.take(message)
        return self._statuses.pop(number, None)

    def end(self) -> None:
        """Tells the server to end, with its roles and all that they started."""
        self.line.close()
        if not self._is_loaded:
            # It has no roles yet, and would only see the end once it has loaded everything.
            self._process.kill()

    def close(self) -> None:
        """Ends the server, its roles and all that they started, and waits for that."""
        self.end()
        if self._process.poll() is None:
            # Popen.wait looks every 50 ms.
            descriptor = os.pidfd_open(self._process.pid)
            watch = select.poll()
            watch.register(descriptor, select.POLLIN)
            if not watch.poll(_CLOSE_SECONDS * 1000):
                self._process.kill()
            os.close(descriptor)
            self._process.wait()


def _fork(theirs: socket.socket) -> Child:
    """Forks a fork server off this process, from which it keeps nothing but what is loaded."""
    driver = os.getpid()

    def serve() -> None:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        descriptor = os.dup2(theirs.detach(), 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.environ.update(SINGLE_THREADED)
        del sys.argv[1:]
        main(descriptor, driver)

    return Child(fork(serve))


def main(descriptor: int, driver: int) -> None:
    """The fork server's own process: loads modules, then forks roles, until the engine or the driver ends.

    Args:
        descriptor: of the connection to the engine.
        driver: pid of the process that has started this one.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Loading takes seconds, in which nothing else would tell that the driver has died.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # What the driver has forked may hold the connection open after its death, so its process is watched, too.
    with suppress(EOFError, ProcessLookupError):
        _Server(Line(socket.socket(fileno=descriptor)), os.pidfd_open(driver)).run()
    _end_children()
    # Taking down an interpreter that has loaded torch takes a quarter of a second, and saves nothing.
    os._exit(0)


class _Server:
    """Forks roles and ends them."""

    def __init__(self, line: Line, driver: int) -> None:
        """driver: descriptor of the driver's process."""
        self._line = line
        self._driver = driver
        self._roles: dict[int, tuple[int, int]] = {}
        """pid -> number of the role, descriptor of the process."""

    def run(self) -> None:
        """Handles requests. Raises EOFError once the engine or its process is gone."""
        while True:
            watch = select.poll()
            watch.register(self._line, select.POLLIN | (select.POLLOUT if self._line.unsent_bytes else 0))
            for descriptor in (self._driver, *(descriptor for _, descriptor in self._roles.values())):
                watch.register(descriptor, select.POLLIN)
            if any(descriptor == self._driver for descriptor, _ in watch.poll(_REAP_SECONDS * 1000)):
                raise EOFError("the driver is dead")
            self._line.flush()
            while (message := self._line.receive()) is not None:
                self._handle(message)
            self._reap()

    def _handle(self, message: Message) -> None:
        request = message.head
        if isinstance(request, _Load):
            self._load(request)
        elif isinstance(request, Spawn):
            (end,), (packed,) = message.sockets, message.values
            self._fork(request, end, packed)
        elif isinstance(request, Kill):
            self._kill(request.number)

    def _load(self, request: _Load) -> None:
        sys.path[:] = request.path
        own_code_first()
        load(request.modules)
        # The driver is watched from here on; the signal would come even if only the starting thread ends.
        prctl(PR_SET_PDEATHSIG, 0)
        self._line.send(_Loaded())

    def _fork(self, request: Spawn, end: socket.socket, packed: Packed) -> None:
        begin = partial(self._become_role, request, os.getpid())
        pid = fork(lambda: RoleServer(request.name, end).run(packed, begin))
        # Both sides set it, because either may run first.
        with suppress(OSError):
            os.setpgid(pid, pid)
        end.close()
        self._roles[pid] = request.number, os.pidfd_open(pid)

    def _become_role(self, request: Spawn, parent: int) -> None:
        """Makes a forked process one of its own: its group, signals, environment and random numbers."""
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before it was asked to take this process along
        self._line.close()
        for descriptor in (self._driver, *(descriptor for _, descriptor in self._roles.values())):
            os.close(descriptor)
        leave_signals_to_driver()
        os.environ.update(request.environment)
        become(request.name)

    def _kill(self, number: int) -> None:
        for pid, (other, _) in self._roles.items():
            if other == number:
                role = psutil.Process(pid)
                for process in (*role.children(recursive=True), role):
                    with suppress(psutil.Error):
                        process.kill()
                _kill_group(pid)

    def _reap(self) -> None:
        """Says which roles have ended, and takes what else has ended off the system's list of processes."""
        while (ended := _ended_child()) is not None:
            if ended in self._roles:
                _kill_group(ended)  # what a crashed role has left, as long as its number is not used again
            _, status = os.waitpid(ended, 0)
            if ended in self._roles:
                number, descriptor = self._roles.pop(ended)
                os.close(descriptor)
                self._line.send(_Ended(number, os.waitstatus_to_exitcode(status)))


def _end_children() -> None:
    """Kills every role and all that roles have started, daemons included."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()


def _ended_child() -> int | None:
    """The pid of a child that has ended and is still known to the system."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
