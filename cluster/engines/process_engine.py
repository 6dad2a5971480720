"""The process engine: every role is a process of this machine, with nothing in between.

Owns spawning and ending roles; must not import ray, torch or gymnasium.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.engines.engine import (
    ArgTs,
    EngineError,
    Handle,
    Need,
    RoleDied,
    RoleOutOfMemory,
    RoleT,
)
from cluster.engines.fork_server import ForkServer, Kill, Spawn
from cluster.engines.lines import Lines
from cluster.engines.placement import Claims
from cluster.engines.process_calls import CALLS, Connection, ProcessCalls
from cluster.engines.shared_memory import MemoryPool
from cluster.engines.wire import Unsendable, pack

_STATUS_SECONDS = 0.2
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


class ForkServers:
    """The two processes that fork roles: one with all that acting needs, one that has loaded torch as well.

    They are started apart from the engine, so that they load while this process loads the rest of a run.
    """

    def __init__(self, acting: tuple[str, ...], learning: tuple[str, ...]) -> None:
        """acting, learning: names of modules to load; `learning` includes torch."""
        self._modules = {False: acting, True: learning}
        self._servers: dict[bool, ForkServer] = {}

    def start(self, *, forked: bool = False) -> None:
        """Starts both, unless they run.

        forked: this process was forked by a Template and has no other thread, so that they can be forked from
        it in turn.
        """
        for torch in (True, False):  # torch takes longest
            self.server(torch=torch, forked=forked)

    def server(self, *, torch: bool, forked: bool = False) -> ForkServer:
        """A living fork server: another one if it has died."""
        found = self._servers.get(torch)
        if found is None or not found.is_alive:
            if found is not None:
                found.close()
            found = self._servers[torch] = ForkServer(self._modules[torch], forked=forked)
        return found

    def close(self) -> None:
        """Ends both, and with them every role. They may be started again."""
        for server in self._servers.values():
            server.end()
        while self._servers:
            self._servers.popitem()[1].close()


class _Role(Connection):
    """The engine's connection to a role, and how to end it. gpus: the devices that are the role's."""

    def __init__(
        self, name: str, end: socket.socket, number: int, server: ForkServer, gpus: list[str]
    ) -> None:
        super().__init__(name, end)
        self.number = number
        self.server = server
        self.gpus = gpus
        self._kills_before = _out_of_memory_kills()

    def death(self) -> EngineError:
        """The error of calls to a role whose process has ended: how it has ended, as far as that is known."""
        status = self.server.status_of(self.number, _STATUS_SECONDS)
        if status is None:
            return RoleDied(self.role, "its process has ended")
        if status >= 0:
            return RoleDied(self.role, f"its process has ended with exit status {status}")
        name = signal.Signals(-status).name
        if name == "SIGKILL" and _out_of_memory_kills() > self._kills_before:
            return RoleOutOfMemory(self.role, "its process was ended because the machine ran out of memory")
        return RoleDied(self.role, f"its process was ended by {name}")


class ProcessEngine(ProcessCalls):
    """Owns the processes of all roles on this machine.

    Roles are connected by sockets without a name, and large values are in memory without a name: nothing is
    in the file system or in /dev/shm, and nothing is left when processes are killed.
    """

    deterministic = False
    own_processes = True

    def __init__(self, servers: ForkServers) -> None:
        lines = Lines()
        super().__init__(lines)
        self._lines = lines
        self._servers = servers
        self._roles: list[_Role] = []
        self._spawned = 0
        self._file_limit = resource.getrlimit(resource.RLIMIT_NOFILE)

    def start(self) -> None:
        """Starts what forks roles, and allows this process as many open files as the system lets it."""
        _, most = self._file_limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._servers.start()

    @property
    def calls(self) -> ProcessCalls:
        """See Engine.calls: a role that this is passed to gets its own."""
        return self

    @property
    def gpus(self) -> float:
        """GPUs of this machine that this process may use."""
        return float(len(_visible_gpus()))

    def reserve(self, claims: Claims, **waiting: object) -> None:
        """Does nothing: the roles take what this machine has."""

    def spawn(self, name: str, role: Callable[[*ArgTs], RoleT], *args: *ArgTs, need: Need) -> Handle[RoleT]:
        """See Engine.spawn."""
        server = self._servers.server(torch=need.torch)
        self._lines.watch(server)
        self._spawned += 1
        own, theirs = socket.socketpair()
        connection = _Role(name, own, self._spawned, server, self._free_gpus(int(need.gpus)))
        self._lines.watch(connection)
        self._roles.append(connection)
        environment = {_VISIBLE_GPUS: ",".join(connection.gpus)} if connection.gpus else {}
        try:
            packed = pack((role, *args), self.connect, self.memories)
        except Unsendable as error:
            raise TypeError(f"{name}: {error}") from error.__cause__
        self._lines.send(server, Spawn(self._spawned, name, environment), [packed], [theirs])
        return Handle(name, connection)

    def connect(self, obj: Any) -> tuple[str, socket.socket | None] | None:
        """Gives a role its own connection to another one, and its own calls; see wire.Connect."""
        if obj is self:
            return CALLS, None
        if not isinstance(obj, Connection):
            return None
        own, theirs = socket.socketpair()
        if obj.is_lost:
            theirs.close()
        else:
            self._lines.send(obj, None, sockets=[theirs])
        return obj.role, own

    def machine_of(self, handle: Handle[Any]) -> str:
        """See Engine.machine_of. There is only one machine."""
        return ""

    def machines_leaving(self) -> frozenset[str]:
        """See Engine.machines_leaving."""
        return frozenset()

    def kill(self, handle: Handle[Any]) -> None:
        """See Engine.kill; also ends what the role has started."""
        role: _Role = handle.target
        if role in self._roles:
            self._roles.remove(role)
            if role.server.is_alive:
                self._lines.send(role.server, Kill(role.number))

    def end_roles(self) -> None:
        """See Engine.end_roles."""
        for role in list(self._roles):
            self.kill(Handle(role.role, role))

    def close(self) -> None:
        """Ends every role and the processes that fork them."""
        self._roles.clear()
        self._servers.close()
        self._lines.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, self._file_limit)

    def _free_gpus(self, count: int) -> list[str]:
        """The first devices that no living role has."""
        taken = {gpu for role in self._roles if not role.is_lost for gpu in role.gpus}
        return [gpu for gpu in _visible_gpus() if gpu not in taken][:count]


def can_run() -> bool:
    """Whether this system has what the process engine needs: Linux, memory files and process descriptors."""
    if sys.platform != "linux":
        return False
    try:
        MemoryPool().write((), (), 0)
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _visible_gpus() -> list[str]:
    """The devices that CUDA shows to this process, as the system lists them: CUDA must not start here."""
    chosen = os.environ.get(_VISIBLE_GPUS)
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def _out_of_memory_kills() -> int:
    """How many processes the kernel of this machine has ended for want of memory; 0 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
