"""A process that has loaded what several runs need, and forks each of them in milliseconds.

Owns both sides; must not import what it loads, which it is told by name.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module

from cluster.engines.child import (
    PR_SET_CHILD_SUBREAPER,
    Child,
    become,
    fork,
    load,
    prctl,
    start_loader,
    stop_with,
)
from cluster.engines.own_code import own_code_first
from cluster.engines.threads import SINGLE_THREADED

_CODE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from cluster.engines.template import serve; serve(int(sys.argv[1]), sys.argv[2:])"
)
_REQUEST_BYTES = 1 << 16


class Template:
    """The process, as the one that has started it sees it. Needs Linux."""

    def __init__(self, main: str, modules: tuple[str, ...]) -> None:
        """main: the module whose main(forked=True) each fork runs. modules: what is loaded as well."""
        self._modules = (main, *modules)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; it loads while this process goes on."""
        self._requests, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs:
            self._process = start_loader(_CODE, theirs, self._modules)

    def fork(self, name: str, arguments: Sequence[str], output: int, held: int) -> Child | None:
        """Forks a process that becomes a child of this one and stops with it.

        It has a session of its own, this process's cores, and the environment that this process had when the
        template was started.

        Args:
            arguments: its sys.argv, without the program.
            output: descriptor for what it prints.
            held: a descriptor that it keeps open.

        Returns:
            None if there is no template, or it has died or cannot be forked.
        """
        if self._process is None:
            return None
        threads = {variable: os.environ.get(variable, one) for variable, one in SINGLE_THREADED.items()}
        request = json.dumps([name, arguments, threads, [*os.sched_getaffinity(0)], os.getpid()])
        readable, writable = os.pipe()
        # The fork's own parent ends at once, so that this process gets it.
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            with open(writable, "wb", buffering=0), suppress(ConnectionError):
                socket.send_fds(self._requests, [request.encode()], [output, held, writable])
            said = os.read(readable, 32)
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)
            os.close(readable)
        return Child(int(said)) if said else None

    def close(self) -> None:
        """Ends the template, but not its forks."""
        if self._process is not None:
            self._requests.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def serve(descriptor: int, modules: Sequence[str]) -> None:
    """The template's own process: loads the modules and forks until its owner ends.

    Args:
        descriptor: of the connection to the owner.
        modules: the first one has the `main` that forks run.
    """
    with suppress(Exception):  # a run that needs what is missing raises it again, and says so
        own_code_first()
        load(modules)
    requests = socket.socket(fileno=descriptor)
    while len(os.listdir("/proc/self/task")) == 1:  # forks would lack other threads, and what these hold
        request, files, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
        if not request:
            break
        fork(partial(_fork_off, partial(_run, modules[0], request, files, requests)))
        os.wait()
        for file in files:
            os.close(file)
    os._exit(0)


def _fork_off(run: partial[int]) -> None:
    """Forks, and ends, so that the fork gets another parent."""
    fork(partial(run, os.getpid()))


def _run(main: str, request: bytes, files: Sequence[int], requests: socket.socket, between: int) -> int:
    """Makes this process, which `between` has forked, one of its own, runs main, and returns its status."""
    name, arguments, threads, cores, owner = json.loads(request)
    output, _, answer = files
    requests.close()
    os.setsid()
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.environ.update(threads)
    os.sched_setaffinity(0, cores)
    become(name)
    sys.argv[1:] = arguments
    while os.getppid() == between:  # which ends now
        time.sleep(0.001)
    stop_with(owner)
    os.write(answer, str(os.getpid()).encode())
    os.close(answer)
    code: object = 0
    try:
        import_module(main).main(forked=True)
    except SystemExit as end:
        code = end.code or 0
    finally:
        atexit._run_exitfuncs()
    if isinstance(code, int):
        return code
    print(code, file=sys.stderr)
    return 1
