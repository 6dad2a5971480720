"""Events of a run: restarts, new best versions, checkpoints, warnings, the end.

Owns the kinds of events and reads them back from the log; must not import torch or ray.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.record.line_file import tail
from cluster.record.logs import Level, LogLine, one_line, read_messages
from cluster.settings.renames import EVENT_PREFIXES

EventKind = Literal["info", "warning", "failed", "ended"]

LEVELS: dict[EventKind, Level] = {"info": "INFO", "warning": "WARNING", "failed": "ERROR", "ended": "END"}
_READ_BYTES = 4 * 2**20
_KINDS: dict[Level, EventKind] = {level: kind for kind, level in LEVELS.items()}
_WORDS: dict[EventKind, str] = {"info": "", "warning": "warning: ", "failed": "failed: ", "ended": "end: "}


@dataclass(frozen=True)
class Event:
    """Something that happened. run_seconds: time on the run's clock. text: does not repeat the kind."""

    kind: EventKind
    text: str
    run_seconds: float

    @property
    def line(self) -> str:
        """Kind and text in one line; a failure's traceback is reduced to its error."""
        return _WORDS[self.kind] + (one_line(self.text) if self.kind == "failed" else self.text)


def events_path(run_dir: Path) -> Path:
    """The file of a run's events, in the format of cluster.record.logs."""
    return run_dir / "logs" / "events.log"


def read_events(run_dir: Path) -> list[Event]:
    """The newest events of a run (those in 4 MiB of log), oldest first; empty without a log."""
    return [_event(line) for line in read_messages(tail(events_path(run_dir), _READ_BYTES))]


def _event(line: LogLine) -> Event:
    # Up to commit 6afb764, the text began with the kind.
    for prefix, kind in EVENT_PREFIXES.items():
        if line.text.startswith(prefix):
            return Event(kind, line.text.removeprefix(prefix), line.run_seconds)
    return Event(_KINDS[line.level], line.text, line.run_seconds)
