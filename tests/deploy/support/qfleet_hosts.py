"""Several Ray hosts on this machine: network, process and host name of their own, joined by a bridge.

Each is a network namespace with an address on a virtual wire, and a process namespace that dies at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from qfleet_ray_head import DEADLINE_SECONDS, RAY, ROOT

_NET = "10.77.0"


def what_is_missing() -> str | None:
    """The reason why this machine cannot have such hosts, or None."""
    absent = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2)"
    name = f"qh{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode != 0:
        return "needs the right to make network namespaces"
    _ip("netns", "del", name)
    return None


class Host:
    """A machine of the cluster."""

    def __init__(self, namespace: str, address: str, env: Mapping[str, str], folder: Path) -> None:
        self.namespace = namespace
        self.address = address
        self._env = dict(env)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Runs `ray start ARGUMENTS`; it and its children are all that runs on this host."""
        log = (self._folder / f"{self.namespace}.log").open("w")
        options = [f"--node-ip-address={self.address}", "--object-store-memory=200000000", *arguments]
        ray = f"{RAY} start --block --disable-usage-stats {' '.join(options)}"
        # The shell stays as process 1 and collects the dead, as an init does; Ray would wait for them.
        inside = f"hostname {self.namespace}; {ray}; exit $?"
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", "--pid", "--uts", "--fork", "--kill-child",
             "--mount-proc", "sh", "-c", inside],
            env=self._env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in this host's network to its end."""
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=DEADLINE_SECONDS,
        )  # fmt: skip

    def roles(self, role: str) -> list[psutil.Process]:
        """The processes of a class of roles on this host."""
        if self._process is None or self._process.poll() is not None:
            return []
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(f"ray::{role}"):
                    found.append(process)
        return found

    def log(self) -> str:
        """The newest output of ray start."""
        return (self._folder / f"{self.namespace}.log").read_text()[-2000:]

    def die(self) -> None:
        """Ends every process of the host at once."""
        if self._process is None:
            return
        inside = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait(10)
        psutil.wait_procs(inside, timeout=20)
        self._process = None


@contextmanager
def ray_hosts(cpus: tuple[int, ...]) -> Iterator[list[Host]]:
    """A cluster with a host for each number of CPUs, the first its head; a dead host is noticed soon."""
    folder = Path(tempfile.mkdtemp(prefix="qn-", dir="/tmp"))
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
    }
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        switch = f"qs{os.getpid()}"
        _namespace(switch, stack)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        hosts = []
        for number, count in enumerate(cpus, start=1):
            name = f"qh{os.getpid()}-{number}"
            _namespace(name, stack)
            wire = ["type", "veth", "peer", "name", "eth0", "netns", name]
            _ip("-n", switch, "link", "add", f"p{number}", *wire)
            _ip("-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{_NET}.{number}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            host = Host(name, f"{_NET}.{number}", env, folder)
            stack.callback(host.die)
            own = [f"--num-cpus={count}", f"--temp-dir={folder / str(number)}"]
            if number == 1:
                host.start("--head", "--port=6399", f"--dashboard-host={host.address}", *own)
            else:
                host.start(f"--address={_NET}.1:6399", *own)
            hosts.append(host)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while hosts[0].run("ray", "status").stdout.count(" 1 node_") < len(hosts):
            assert time.monotonic() < deadline, "\n".join(host.log() for host in hosts)
        yield hosts


def _namespace(name: str, stack: ExitStack) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
