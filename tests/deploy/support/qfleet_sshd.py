"""A host that is reached by ssh and is this machine: sshd on a loopback port, home and processes of its own.

Everything that is started through it lives in a process namespace that ends with it, so that `ray stop`,
which kills every Ray process that it can see, sees no others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "unshare")
_SEARCHED = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def what_is_missing() -> str | None:
    """The reason why this machine cannot have such a host, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_SEARCHED) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: openssh-server, rsync)"
    namespace = ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "true"]
    if subprocess.run(namespace, capture_output=True).returncode != 0:
        return "needs the right to make process namespaces"
    return None


class SshHost:
    """sshd, and an environment in which ssh and rsync lead to it whatever address they are given."""

    def __init__(self, port: int, search_path: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qs-", dir="/tmp"))
        self.home = self.folder / "home"
        self.home.mkdir()
        self.key = self.folder / "key"
        for name in ("key", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True
            )
        # Ray on the loopback interface, as in qfleet_ray_head.
        bashrc = f'export PATH="{search_path}:$PATH" RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0\n'
        (self.home / ".bashrc").write_text(bashrc)
        config = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": self.folder / "key.pub",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "SetEnv": f"HOME={self.home}",
        }
        lines = "".join(f"{name} {value}\n" for name, value in config.items())
        (self.folder / "sshd_config").write_text(lines)
        # ssh looks for its settings in the user's true home, whatever HOME says: so they come by a wrapper.
        programs = self.folder / "bin"
        programs.mkdir()
        wrapper = programs / "ssh"
        options = f"-o Port={port} -o UserKnownHostsFile={self.folder / 'known_hosts'}"
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F /dev/null {options} "$@"\n')
        wrapper.chmod(0o755)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(self.home),
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        Path("/run/sshd").mkdir(exist_ok=True)
        self._log = (self.folder / "sshd.log").open("w")
        self._process = subprocess.Popen(
            ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc",
             str(shutil.which("sshd", path=_SEARCHED)), "-D", "-e", "-f", str(self.folder / "sshd_config")],
            stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip

    def log(self) -> str:
        """The output of sshd."""
        return (self.folder / "sshd.log").read_text()

    def close(self) -> None:
        """Ends sshd and everything that was started through it."""
        inside = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait(10)
        psutil.wait_procs(inside, timeout=20)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
