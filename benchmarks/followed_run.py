"""Runs `qfleet train` in its own process, follows the files that it writes, and signals its processes."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 180.0
_LOOK_SECONDS = 0.02
CLASSES = {"actor": "ActorRole", "shard": "ShardRole", "learner": "LearnerRole", "evaluator": "EvaluatorRole"}

Line = Mapping[str, Any]


class FollowedRun:
    """Starts `qfleet train ARGUMENTS` on one folder, as often as asked; ends the processes that are left."""

    def __init__(self, arguments: Sequence[str], run_dir: Path, env: Mapping[str, str] | None = None) -> None:
        self.run_dir = run_dir
        self.arguments = list(arguments)
        self.env = dict(os.environ if env is None else env)
        # A short path: Ray makes Unix sockets below it, whose paths may have at most 107 bytes.
        self.temp = Path(tempfile.mkdtemp(prefix="qc-", dir="/tmp"))
        self._strangers = set(psutil.Process().children(recursive=True))
        self._family: set[psutil.Process] = set()
        self._read_bytes = 0
        self._lines: list[Line] = []
        self._output = self.temp / "output"
        self._terminal: int | None = None
        self._shared_memory: set[str] = set()
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self, *more: str, terminal: bool = False) -> None:
        """Starts the command, with `more` arguments added; terminal: on one of its own, which is not kept."""
        command = [sys.executable, "-m", "cluster.main", "train", *self.arguments, *more]
        command += ["--run-dir", str(self.run_dir)]
        env = {**self.env, "TMPDIR": str(self.temp)}
        if terminal:
            self._terminal, theirs = pty.openpty()
            command = ["setsid", "--ctty", *command]
            env["TERM"] = "xterm"
            self.driver = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs
            )
            os.close(theirs)
            return
        with self._output.open("ab") as output:
            self.driver = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
            )

    def close_terminal(self) -> None:
        """Closes the other end of the command's terminal."""
        assert self._terminal is not None
        os.close(self._terminal)
        self._terminal = None

    @property
    def driver_pid(self) -> int:
        """The pid of the command itself."""
        assert self.driver is not None
        return self.driver.pid

    def lines(self) -> list[Line]:
        """Every line of metrics.jsonl so far."""
        with suppress(FileNotFoundError), (self.run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(self._read_bytes)
            whole = file.read().rpartition(b"\n")[0]
            if whole:
                self._read_bytes += len(whole) + 1
                self._lines += [json.loads(line) for line in whole.splitlines()]
        return self._lines

    def newest(self) -> Line:
        """The newest line of metrics. Raises LookupError before there is one."""
        return self.lines()[-1]

    def events(self) -> list[str]:
        """Every line of the log of events so far."""
        with suppress(FileNotFoundError):
            return (self.run_dir / "logs" / "events.log").read_text().splitlines()
        return []

    def output(self) -> str:
        """Everything that the command has printed."""
        return self._output.read_text() if self._output.exists() else ""

    def roles(self, kind: str) -> list[int]:
        """Pids of the live processes of this kind of role."""
        found = []
        for process in self.family():
            with suppress(psutil.Error):
                # Ray puts the role in the title of its process, the process engine in the name.
                named = process.name().startswith(f"qf {kind}")
                named = named or " ".join(process.cmdline()).startswith(f"ray::{CLASSES[kind]}")
                if named and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return sorted(found)

    def family(self) -> set[psutil.Process]:
        """The live processes of the run, including orphans seen earlier."""
        self._family |= set(psutil.Process().children(recursive=True)) - self._strangers
        if self.driver is not None:
            with suppress(psutil.NoSuchProcess):
                self._family |= set(psutil.Process(self.driver.pid).children(recursive=True))
        self._family = {process for process in self._family if process.is_running()}
        return self._family

    def wait_for(self, fact: Callable[[], Any], what: str, seconds: float = TIMEOUT_SECONDS) -> Any:
        """Polls until `fact` returns something true, and returns that. Raises RuntimeError at the timeout."""
        deadline = time.monotonic() + seconds
        while True:
            if self._terminal is not None and select.select([self._terminal], [], [], 0.0)[0]:
                os.read(self._terminal, 1 << 16)  # one that is full would stop the command
            with suppress(LookupError):
                found = fact()
                if found:
                    return found
            ended = self.driver is not None and self.driver.poll() is not None
            if time.monotonic() > deadline or ended:
                why = (
                    f"the command ended ({self.driver and self.driver.returncode})" if ended else "time is up"
                )
                raise RuntimeError(f"waited in vain for {what}: {why}\n{self.output()[-4000:]}")
            time.sleep(_LOOK_SECONDS)

    def finish(self, number: signal.Signals | None = None) -> int:
        """Sends a signal to the driver, if one is given, and waits for its end; returns its exit status."""
        assert self.driver is not None
        self.family()
        if number is not None:
            self.driver.send_signal(number)
        return self.driver.wait(TIMEOUT_SECONDS)

    def kill_all(self) -> None:
        """Kills the driver and all that it started with SIGKILL, as if the machine were lost."""
        assert self.driver is not None
        family = self.family()
        self.driver.kill()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.driver.wait(TIMEOUT_SECONDS)
        psutil.wait_procs(family, timeout=10)

    def note_shared_memory(self) -> None:
        """Remembers which files of /dev/shm the command's processes hold now."""
        for process in self.family():
            with suppress(psutil.Error):
                paths = [entry.path for entry in process.memory_maps()]
                self._shared_memory.update(path for path in paths if path.startswith("/dev/shm/"))

    def left_files(self) -> list[str]:
        """What is left in /dev/shm, of what was noted, and in the temporary folder."""
        shared = [path for path in self._shared_memory if os.path.exists(path)]
        return sorted(shared) + sorted(path.name for path in self.temp.iterdir() if path != self._output)

    def left(self, seconds: float = 15.0) -> list[str]:
        """Titles of the processes that are still alive `seconds` after this call."""
        _, alive = psutil.wait_procs(self.family(), timeout=seconds)
        titles = []
        for process in alive:
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    titles.append(" ".join(process.cmdline())[:120])
        return titles

    def close(self) -> None:
        """Ends what is still alive, and removes the temporary folder."""
        if self.driver is not None:
            self.kill_all()
        shutil.rmtree(self.temp, ignore_errors=True)
