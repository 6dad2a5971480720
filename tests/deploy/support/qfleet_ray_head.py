"""A Ray head on the loopback interface, with token authentication, and commands that talk to it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]
RAY = Path(sys.executable).with_name("ray")
DEADLINE_SECONDS = 120.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(fact: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Waits until the fact holds."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


class RayHead:
    """`ray start --head` with ports, folder and token of its own."""

    def __init__(self, *options: str, cpus: int, host: str = "127.0.0.1", dashboard: bool = True) -> None:
        # Short: Ray makes Unix sockets below it, whose paths may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="qd-", dir="/tmp"))
        self.home = self.folder / "home"
        self.home.mkdir()
        gcs, board, agent, agent_grpc, metrics, runtime_env = free_ports(6)
        self.address, self.jobs = f"{host}:{gcs}", f"http://{host}:{board}"
        self.env: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            # Without it Ray resolves 127.0.0.1 to an outer address and listens there.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if host == "127.0.0.1" else "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "HOME": str(self.home),
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        }
        command = [
            str(RAY), "start", "--head", "--block", "--disable-usage-stats",
            f"--node-ip-address={host}", f"--port={gcs}", f"--num-cpus={cpus}",
            f"--include-dashboard={str(dashboard).lower()}",
            f"--dashboard-host={host}", f"--dashboard-port={board}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime_env}",
            "--object-store-memory=200000000", f"--temp-dir={self.folder / 'ray'}", *options,
        ]  # fmt: skip
        self._log = (self.folder / "head.log").open("w")
        self.process = subprocess.Popen(
            command, env=self.env, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def wait_until_up(self, port: int | None = None) -> None:
        """Waits until the head answers on its port (default: the one for jobs)."""
        host, _, own = self.jobs.removeprefix("http://").partition(":")
        wait_for(lambda: _answers(host, port or int(own)), f"the head: {self.log()}")

    def run(
        self, *command: str, cwd: Path = ROOT, seconds: float = DEADLINE_SECONDS, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in this head's environment to its end."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )

    def log(self) -> str:
        """The newest output of the head."""
        return (self.folder / "head.log").read_text()[-2000:]

    def close(self) -> None:
        """Ends it and everything that it started."""
        family = [psutil.Process(pid) for pid in (self.process.pid, *_children(self.process.pid))]
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def ray_head(*options: str, cpus: int, dashboard: bool = True) -> Iterator[RayHead]:
    """A head for the length of the block."""
    head = RayHead(*options, cpus=cpus, dashboard=dashboard)
    try:
        head.wait_until_up(None if dashboard else int(head.address.rpartition(":")[2]))
        yield head
    finally:
        head.close()


def listening_elsewhere(head: RayHead) -> list[str]:
    """The addresses outside the loopback interface where the head, or a process it started, listens."""
    found = []
    for pid in [head.process.pid, *_children(head.process.pid)]:
        process = psutil.Process(pid)
        found += [
            f"{process.name()} on {each.laddr.ip}:{each.laddr.port}"
            for each in process.net_connections("inet")
            if each.status == psutil.CONN_LISTEN
            and not ip_address(each.laddr.ip.removeprefix("::ffff:")).is_loopback
        ]
    return found


def _is_loopback(address: str) -> bool:
    return ip_address(address.removeprefix("::ffff:")).is_loopback


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
