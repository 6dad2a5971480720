"""Logs: one format for every line, and each role's output, warnings and last words in the run directory.

Owns the line format, the capture of a process's output and reading it back; must not import ray or torch.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO, cast

from cluster.record.line_file import tail

Level = Literal["INFO", "WARNING", "ERROR", "END"]

_LINE = re.compile(
    r"(?P<at>\S+Z) +(?P<seconds>-?[\d.]+) (?P<role>\S+)/(?P<incarnation>\d+) "
    r"(?P<level>INFO|WARNING|ERROR|END) *"
)
_RELAYED_LINES = 1_000
_TAIL_BYTES = 64 * 1024
_ERROR = re.compile(r"[A-Za-z_][\w.]*(: |$)")
_BEGAN = "began as process"
_GOES_ON = "| "


@dataclass(frozen=True)
class LogSource:
    """Who writes. role: "actor 3"; run_started_at: unix seconds at which the run's clock showed 0."""

    role: str
    incarnation: int
    run_started_at: float

    def lines(self, level: Level, message: str, now: float | None = None) -> str:
        """`message` as log lines, each ended by a newline and each complete in itself.

        Time (UTC), run seconds, role/incarnation, level, text; from a message's second line on the text
        begins with "| ". now: unix seconds, default the clock's.
        """
        now = time.time() if now is None else now
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = f"{stamp} {now - self.run_started_at:10.3f} {_token(self.role)}/{self.incarnation} {level:<7} "
        first, *others = message.splitlines() or [""]
        return "".join(
            f"{head}{text}".rstrip() + "\n" for text in (first, *(f"{_GOES_ON}{line}" for line in others))
        )


@dataclass(frozen=True)
class LogLine:
    """A line read back. role as in file names: "actor-3"."""

    run_seconds: float
    role: str
    incarnation: int
    level: Level
    text: str


def parse_line(line: str) -> LogLine | None:
    """The parts of a log line; None for one in another form, such as what native code wrote itself."""
    found = _LINE.match(line)
    if found is None:
        return None
    return LogLine(
        float(found["seconds"]),
        found["role"],
        int(found["incarnation"]),
        cast(Level, found["level"]),
        line[found.end() :].rstrip("\n"),
    )


def log_path(logs: Path, role: str) -> Path:
    """Where a role's lines go: logs/actor-3.log."""
    return logs / f"{_token(role)}.log"


def _token(role: str) -> str:
    return role.replace(" ", "-")


class LineWriter(io.TextIOBase):
    """A text stream that hands on whole lines as log lines. It can stand in for sys.stdout or sys.stderr."""

    def __init__(
        self, source: LogSource, level: Level, emit: Callable[[str], None], descriptor: int | None = None
    ) -> None:
        self._source = source
        self._level = level
        self._emit = emit
        self._descriptor = descriptor
        self._partial = ""
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What print and its friends ask for."""
        return "utf-8"

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor that the lines end in; OSError where there is none."""
        if self._descriptor is None:
            raise io.UnsupportedOperation("fileno")
        return self._descriptor

    def write(self, text: str) -> int:
        """Keeps what is no whole line yet."""
        with self._lock:
            # A progress bar redraws its line by \r: each drawing is a line here.
            whole, newline, self._partial = (
                (self._partial + text).replace("\r\n", "\n").replace("\r", "\n").rpartition("\n")
            )
            if newline:
                now = time.time()
                self._emit("".join(self._source.lines(self._level, line, now) for line in whole.split("\n")))
        return len(text)

    def finish(self) -> None:
        """Ends a line that was left open."""
        with self._lock:
            if self._partial:
                self.write("\n")


class _Records(logging.Handler):
    """Python's logging, and through it Python's warnings, in the one format."""

    def __init__(self, source: LogSource, emit: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._source = source
        self._lines = emit
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        level: Level = (
            "ERROR"
            if record.levelno >= logging.ERROR
            else "WARNING"
            if record.levelno >= logging.WARNING
            else "INFO"
        )
        self._lines(self._source.lines(level, self.format(record), record.created))


class ProcessLog:
    """All that this process says from now on, until it ends: for a process that one role has to itself.

    Where the run's folder is on this machine, its output goes to the role's log: Python's line by line in the
    one format, and what native code writes as it is, so that a crash's last words are kept as well.
    Elsewhere (a cluster whose machines share no folder) the last lines wait in memory until they are taken.
    """

    def __init__(self, source: LogSource, logs: Path) -> None:
        self.relays = not logs.is_dir()
        self._waiting: collections.deque[str] = collections.deque(maxlen=_RELAYED_LINES)
        emit = self._keep if self.relays else self._take_over(log_path(logs, source.role))
        emit(source.lines("INFO", f"{_BEGAN} {os.getpid()}"))
        sys.stdout = LineWriter(source, "INFO", emit, 1)
        sys.stderr = LineWriter(source, "WARNING", emit, 2)
        logging.getLogger().addHandler(_Records(source, emit))
        logging.captureWarnings(True)

    def take(self) -> str:
        """The lines that wait, once; at most the newest thousand."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._waiting.popleft())
        return "".join(taken)

    def _keep(self, lines: str) -> None:
        self._waiting.extend(lines.splitlines(keepends=True))

    @staticmethod
    def _take_over(path: Path) -> Callable[[str], None]:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)

        def emit(lines: str) -> None:
            # A full disk must not end the role: whoever writes the run's records says so.
            with contextlib.suppress(OSError):
                os.write(descriptor, lines.encode("utf-8", "replace"))

        return emit


class SerialLogs:
    """The same for roles that share this process: what is said during a role's calls goes to its log.

    It is shown on the terminal, too: the serial runtime is for debugging.
    """

    def __init__(self, logs: Path, run_started_at: float) -> None:
        self._logs = logs
        self._run_started_at = run_started_at
        self._writers: dict[str, tuple[LineWriter, LineWriter]] = {}

    @contextlib.contextmanager
    def output_of(self, role: str) -> Iterator[None]:
        """Within the block sys.stdout and sys.stderr are this role's; a block within is the other role's."""
        if role not in self._writers:
            source = LogSource(role, 0, self._run_started_at)
            self._writers[role] = (
                LineWriter(source, "INFO", self._appender(role)),
                LineWriter(source, "WARNING", self._appender(role)),
            )
        before = sys.stdout, sys.stderr
        out, err = self._writers[role]
        sys.stdout, sys.stderr = _Tee(_terminal(before[0]), out), _Tee(_terminal(before[1]), err)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before

    def close(self) -> None:
        """Ends lines that were left open."""
        for pair in self._writers.values():
            for writer in pair:
                writer.finish()

    def _appender(self, role: str) -> Callable[[str], None]:
        def emit(lines: str) -> None:
            append(self._logs, role, lines)

        return emit


class _Tee(io.TextIOBase):
    """Writes to the terminal and to a role's log."""

    def __init__(self, terminal: TextIO, log: LineWriter) -> None:
        self.terminal = terminal
        self._log = log

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The terminal's."""
        return self.terminal.encoding

    def fileno(self) -> int:
        """The terminal's descriptor."""
        return self.terminal.fileno()

    def isatty(self) -> bool:
        """As the terminal says."""
        return self.terminal.isatty()

    def write(self, text: str) -> int:
        """To both."""
        self._log.write(text)
        return self.terminal.write(text)

    def flush(self) -> None:
        """The terminal; the log is never behind."""
        self.terminal.flush()


def _terminal(stream: TextIO) -> TextIO:
    return stream.terminal if isinstance(stream, _Tee) else stream


def append(logs: Path, role: str, lines: str) -> None:
    """Adds lines to a role's log; a folder that is gone or full is passed over."""
    with contextlib.suppress(OSError), log_path(logs, role).open("a", encoding="utf-8") as file:
        file.write(lines)


def last_words(logs: Path, role: str, count: int) -> list[str]:
    """The newest `count` lines of a role's log without heads; empty if it only ever said that it began."""
    said = [
        parsed.text if (parsed := parse_line(line)) else line
        for line in tail(log_path(logs, role), _TAIL_BYTES)
    ]
    return [text for text in said if not text.startswith(_BEGAN)][-count:]


def gist(failure: str) -> str:
    """A failure's event in one line: of a traceback the error itself, and whose it was."""
    lines = [line for line in failure.splitlines() if line.strip()]
    # Notes may follow the error; it is the last line that begins as one.
    errors = [line for line in lines[:-1] if _ERROR.match(line)] or lines[-2:-1]
    return "; ".join([*errors[-1:], *lines[-1:]])


def read_messages(lines: Iterable[str]) -> list[LogLine]:
    """Messages read back, each with newlines in its text where it had them."""
    found: list[LogLine] = []
    for line in lines:
        parsed = parse_line(line)
        if parsed is None:
            continue
        if found and parsed.text.startswith(_GOES_ON.rstrip()):
            rest = parsed.text.removeprefix(_GOES_ON.rstrip()).removeprefix(" ")
            found[-1] = dataclasses.replace(found[-1], text=f"{found[-1].text}\n{rest}")
        else:
            found.append(parsed)
    return found
