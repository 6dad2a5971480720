"""The output of roles as log lines: everything that they print, log and warn.

Owns the capture of a process's output; must not import ray or torch.
"""

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from cluster.record.logs import BEGAN, Level, LogSource, log_path

_RELAYED_LINES = 1_000


class LineWriter(io.TextIOBase):
    """A text stream that emits log lines, for use as sys.stdout or sys.stderr.

    beneath: the stream that it replaces, used for fileno() and isatty(). echo: also write the text there.
    partial: the text of a line that is not complete yet.
    """

    encoding = "utf-8"

    def __init__(
        self,
        source: LogSource,
        level: Level,
        emit: Callable[[str], object],
        beneath: TextIO,
        *,
        echo: bool = False,
    ) -> None:
        self._source = source
        self._level = level
        self._emit = emit
        self._beneath = beneath
        self._echo = echo
        self.partial = ""
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """The descriptor of the stream beneath. Raises OSError if it has none."""
        return self._beneath.fileno()

    def isatty(self) -> bool:
        """Whether the stream beneath is a terminal."""
        return self._beneath.isatty()

    def write(self, text: str) -> int:
        """Emits the lines that are complete now, and keeps the rest."""
        with self._lock:
            if self._echo:
                # A terminal that is gone or cannot show a character costs the echo only, not the role.
                with contextlib.suppress(OSError, ValueError):
                    self._beneath.write(text)
            # A progress bar redraws its line after \r: each redrawing becomes a line.
            whole, newline, self.partial = (
                (self.partial + text).replace("\r\n", "\n").replace("\r", "\n").rpartition("\n")
            )
            if newline:
                now = time.time()
                self._emit("".join(self._source.lines(self._level, line, now) for line in whole.split("\n")))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream beneath, unless it is gone; lines are emitted at once."""
        with contextlib.suppress(OSError, ValueError):
            self._beneath.flush()

    def finish(self) -> None:
        """Emits an incomplete line, if there is one."""
        with self._lock:
            rest, self.partial = self.partial, ""
            if rest:
                self._emit(self._source.lines(self._level, rest))


class _LogHandler(logging.Handler):
    """Writes records of Python's logging, and through it warnings, as log lines."""

    def __init__(self, source: LogSource, emit: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._source = source
        self._emit = emit
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        serious: Level = "ERROR" if record.levelno >= logging.ERROR else "WARNING"
        level = serious if record.levelno >= logging.WARNING else "INFO"
        self._emit(self._source.lines(level, self.format(record), record.created))


class ProcessLog:
    """Logs everything that this process, which has one role, prints, logs and warns from now until it ends.

    If the run's folder is on this machine, the output goes to the role's file: Python's as log lines, that of
    native code unchanged, so that the last output before a crash is kept.
    Otherwise (on a cluster without a shared folder) the newest lines wait in memory until take() is called.
    """

    def __init__(self, source: LogSource, logs: Path) -> None:
        self.relays = not logs.is_dir()
        self._waiting: deque[str] = deque(maxlen=_RELAYED_LINES)
        emit = self._keep if self.relays else _redirect_output(log_path(logs, source.role))
        emit(source.lines("INFO", f"{BEGAN} {os.getpid()}"))
        out, err = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
        sys.stdout = LineWriter(source, "INFO", emit, out)
        sys.stderr = LineWriter(source, "WARNING", emit, err)
        logging.getLogger().addHandler(_LogHandler(source, emit))
        logging.captureWarnings(True)

    def take(self) -> str:
        """Removes and returns the waiting lines, at most the newest thousand."""
        return "".join(self._waiting.popleft() for _ in range(len(self._waiting)))

    def _keep(self, lines: str) -> None:
        self._waiting.extend(lines.splitlines(keepends=True))


def _redirect_output(path: Path) -> Callable[[str], object]:
    """Sends the standard streams of this process to a file; returns a function that appends to it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    def emit(lines: str) -> None:
        # A full disk must not end the role; the coordinator notices and reports it.
        with contextlib.suppress(OSError):
            os.write(descriptor, lines.encode("utf-8", "replace"))

    return emit
