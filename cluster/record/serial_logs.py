"""The output of roles that share one process, as log lines of each role.

Owns whose output is written now; must not import ray or torch.
"""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cluster.record.logs import LogSource, append
from cluster.record.output import LineWriter


class SerialLogs:
    """Logs the output of roles that share this process, separated by role; the terminal shows it too."""

    def __init__(self, logs: Path, run_started_at: float) -> None:
        self._logs = logs
        self._run_started_at = run_started_at
        self._terminal = sys.stdout, sys.stderr
        self._writers: dict[str, tuple[LineWriter, LineWriter]] = {}

    @contextlib.contextmanager
    def output_of(self, role: str) -> Iterator[None]:
        """Logs output within the block as this role's; blocks of other roles may be nested in it."""
        if role not in self._writers:
            source, emit = LogSource(role, 0, self._run_started_at), partial(append, self._logs, role)
            self._writers[role] = (
                LineWriter(source, "INFO", emit, self._terminal[0], echo=True),
                LineWriter(source, "WARNING", emit, self._terminal[1], echo=True),
            )
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = writers = self._writers[role]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for writer in writers:
                if writer.partial:
                    writer.finish()
