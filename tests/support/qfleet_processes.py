"""A `qfleet` process and everything that it starts: followed, signaled, counted and cleaned up."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

SUPPORT = Path(__file__).parent
DEADLINE_SECONDS = 90.0
_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Within the block, processes whose parent dies become children of this one, so none can hide."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def set_flags(overrides: Iterable[str]) -> list[str]:
    """The arguments `--set OVERRIDE` for each override of settings."""
    return [part for override in overrides for part in ("--set", override)]


def import_path() -> str:
    """PYTHONPATH for a process that tests the code of this process and may import support/."""
    return os.pathsep.join(filter(None, (str(SUPPORT), os.environ.get("PYTHONPATH"))))


def run_qfleet(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m cluster.main ARGUMENTS`, to its end; the environments of support/ are importable."""
    return subprocess.run(
        [sys.executable, "-m", "cluster.main", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": import_path()},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def recorded_updates(run_dir: Path) -> int:
    """The newest number of updates that a run has recorded."""
    with suppress(FileNotFoundError):
        whole = (run_dir / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()
        return int(json.loads(whole[-1])["updates_total"]) if whole else 0
    return 0


class LocalRun:
    """One `qfleet train` on the local runtime. It has a temporary folder of its own: TMPDIR."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.lines: list[str] = []
        self.errors = ""
        self.shared_memory: set[str] = set()
        # Short, so that Ray's Unix sockets can lie below it.
        self.temp = Path(tempfile.mkdtemp(prefix="qt-", dir="/tmp"))
        self._before = set(psutil.Process().children(recursive=True))
        self._error_file = folder / "stderr"
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self, *arguments: str) -> None:
        """Starts it with `train ARGUMENTS --run-dir self.run_dir`."""
        with self._error_file.open("w") as errors:
            self._process = subprocess.Popen(
                self._command(arguments),
                cwd=SUPPORT,
                env={**os.environ, "TMPDIR": str(self.temp)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start_on_terminal(self, terminal: int, *arguments: str) -> None:
        """Starts it with this descriptor as its controlling terminal; nothing is read here, see wait_for."""
        self._error_file.touch()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *self._command(arguments)],
            cwd=SUPPORT,
            env={**os.environ, "TMPDIR": str(self.temp), "TERM": "xterm"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )

    def wait_for(self, fact: Callable[[], bool], what: str) -> None:
        """Looks at `fact` after each line of output, until it holds."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            while not fact():
                left = deadline - time.monotonic()
                ended = self._process is not None and self._process.poll() is not None
                assert left > 0, self._description(what)
                assert not ended or self._reader_alive(), self._description(what)
                self._changed.wait(min(left, 0.5))

    def has_line(self, text: str) -> bool:
        """Whether a line of the output holds `text`."""
        return any(text in line for line in self.lines)

    def updates(self) -> int:
        """The newest number of updates that was recorded."""
        return recorded_updates(self.run_dir)

    def metrics(self) -> dict[str, float]:
        """A scrape of /metrics: sample name -> value."""
        found = re.search(r"http://\S+/metrics", "\n".join(self.lines))
        if found is None:
            return {}
        try:
            with urllib.request.urlopen(found.group(), timeout=10) as reply:
                text = reply.read().decode()
        except urllib.error.URLError:
            return {}
        families = text_string_to_metric_families(text)
        return {sample.name: sample.value for family in families for sample in family.samples}

    def pid_of(self, role: str) -> int:
        """The process of the only living role of this class, e.g. "ActorRole"."""
        (found,) = self._roles(role)
        return found.pid

    def pids_of(self, role: str) -> list[int]:
        """The processes of this class that live."""
        return [process.pid for process in self._roles(role)]

    def is_up(self, role: str) -> bool:
        """Whether exactly one process of this class lives."""
        return len(self._roles(role)) == 1

    def memory_bytes(self) -> int:
        """What the run's processes hold; a page that several share counts once."""
        return sum(process.memory_full_info().pss for process in self._offspring())

    def note_shared_memory(self) -> None:
        """Remembers which files of /dev/shm the run's processes hold now."""
        for process in self._offspring():
            try:
                paths = [entry.path for entry in process.memory_maps()]
            except psutil.Error:
                continue
            self.shared_memory.update(path for path in paths if path.startswith("/dev/shm/"))

    def interrupt_group(self) -> None:
        """What a terminal does on ctrl-C: SIGINT to every process of the group."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)

    def send(self, number: signal.Signals) -> None:
        """Signals the driver alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def finish(self) -> int:
        """Waits for the end; returns the exit status, with output and errors complete."""
        assert self._process is not None
        try:
            status = self._process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._description("the end of the run")) from None
        if self._reader is not None:
            self._reader.join(DEADLINE_SECONDS)
        self.errors = self._error_file.read_text()
        return status

    def assert_nothing_left(self, *, seconds: float = 10.0) -> None:
        """No process, no Ray folder, no shared memory of the run is left, or will not be in a moment."""
        _, alive = psutil.wait_procs(self._offspring(), timeout=seconds)
        assert not [process for process in alive if is_alive(process)], self._description(
            "its processes to end"
        )
        assert not list(self.temp.glob("qf-*")), "a temporary Ray folder is left"
        left = [path for path in self.shared_memory if Path(path).exists()]
        assert not left, f"shared memory is left: {left}"

    def temp_folders_of_the_dead(self) -> None:
        """Removes what a driver that was killed could not remove itself."""
        for folder in self.temp.glob("qf-*"):
            shutil.rmtree(folder)

    def destroy(self) -> None:
        """Kills what still lives and removes the temporary folder."""
        for process in self._offspring():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if self._process is not None:
            self._process.wait(DEADLINE_SECONDS)
        if self._reader is not None:
            self._reader.join(DEADLINE_SECONDS)
        psutil.wait_procs(self._offspring(), timeout=10)
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        shutil.rmtree(self.temp, ignore_errors=True)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "cluster.main", "train", *arguments, "--run-dir", str(self.run_dir)]

    def _offspring(self) -> list[psutil.Process]:
        return [
            process for process in psutil.Process().children(recursive=True) if process not in self._before
        ]

    def _roles(self, role: str) -> list[psutil.Process]:
        return [process for process in self._offspring() if _is_role(process, role)]

    def _reader_alive(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _description(self, what: str) -> str:
        processes = [f"{process.pid} {_title(process)}" for process in self._offspring()]
        shown: Sequence[str] = (*self.lines[-15:], self._error_file.read_text()[-3000:], *processes)
        return f"waited in vain for {what}:\n" + "\n".join(shown)


def _is_role(process: psutil.Process, role: str) -> bool:
    """Whether a process is a role of this class: Ray puts it in the title, the process engine in the name."""
    with suppress(psutil.Error):
        named = process.name().startswith(f"qf {role.removesuffix('Role').lower()}")
        return (named and is_alive(process)) or _title(process).startswith(f"ray::{role}")
    return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended, even if nobody has waited for it yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
