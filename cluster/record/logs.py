"""Logs: one line format, written and read back.

Owns the format and the names of log files; must not import ray or torch.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from cluster.record.line_file import tail

Level = Literal["INFO", "WARNING", "ERROR", "END"]

_LINE = re.compile(
    r"(?P<at>\S+Z) +(?P<seconds>-?[\d.]+) (?P<role>\S+)/(?P<incarnation>\d+) "
    r"(?P<level>INFO|WARNING|ERROR|END) *"
)
_TAIL_BYTES = 64 * 1024
_ERROR = re.compile(r"[A-Za-z_][\w.]*(: |$)")
BEGAN = "began as process"
"""The beginning of a process's first line."""

_CONTINUES = "| "


@dataclass(frozen=True)
class LogSource:
    """The writer of log lines. role: "actor 3". run_started_at: unix seconds when the run's clock was 0."""

    role: str
    incarnation: int
    run_started_at: float

    def lines(self, level: Level, message: str, now: float | None = None) -> str:
        """`message` as log lines, each with its newline and complete by itself.

        A line has the time (UTC), run seconds, role/incarnation, level and text; from the second line of a
        message on, the text begins with "| ". now: unix seconds; default: the current time.
        """
        now = time.time() if now is None else now
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = f"{stamp} {now - self.run_started_at:10.3f} {_token(self.role)}/{self.incarnation} {level:<7} "
        first, *others = message.splitlines() or [""]
        return "".join(
            f"{head}{text}".rstrip() + "\n" for text in (first, *(f"{_CONTINUES}{line}" for line in others))
        )


@dataclass(frozen=True)
class LogLine:
    """A parsed line. role: as in file names, "actor-3"."""

    run_seconds: float
    role: str
    incarnation: int
    level: Level
    text: str


def parse_line(line: str) -> LogLine | None:
    """The parts of a log line; None for a line in another form, such as one that native code wrote."""
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
    """The file of a role's lines: logs/actor-3.log."""
    return logs / f"{_token(role)}.log"


def _token(role: str) -> str:
    return role.replace(" ", "-")


def append(logs: Path, role: str, lines: str) -> None:
    """Appends lines to a role's file; ignores errors, for instance of a full disk."""
    with contextlib.suppress(OSError), log_path(logs, role).open("a", encoding="utf-8") as file:
        file.write(lines)


def last_lines(logs: Path, role: str, count: int) -> list[str]:
    """The texts of the last `count` lines of a role, without the one that reports its start."""
    lines = tail(log_path(logs, role), _TAIL_BYTES)
    texts = [parsed.text if (parsed := parse_line(line)) else line for line in lines]
    return [text for text in texts if not text.startswith(BEGAN)][-count:]


def one_line(failure: str) -> str:
    """A failure in one line: the error of its traceback, else its first line; and its last line."""
    *lines, last = [line for line in failure.splitlines() if line.strip()] or [failure]
    # Notes may follow the error, so it is the last line that has the form of one.
    errors = [line for line in lines if _ERROR.match(line)] or lines[:1]
    return "; ".join([*(error.removesuffix(":") for error in errors[-1:]), last])


def read_messages(lines: Iterable[str]) -> list[LogLine]:
    """Joins log lines to the messages that were written; other lines are left out."""
    found: list[LogLine] = []
    for parsed in filter(None, map(parse_line, lines)):
        if found and parsed.text.startswith(_CONTINUES.rstrip()):
            rest = parsed.text.removeprefix(_CONTINUES.rstrip()).removeprefix(" ")
            found[-1] = dataclasses.replace(found[-1], text=f"{found[-1].text}\n{rest}")
        else:
            found.append(parsed)
    return found
