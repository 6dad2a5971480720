"""Files of lines: appending whole lines, and reading them back.

Owns the repair after a full disk or a killed process; must not import anything outside the standard library.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

_LOOK_BACK_BYTES = 1 << 16


class LineFile:
    """Appends lines of UTF-8 text, unbuffered; nobody else may write the file meanwhile."""

    def __init__(self, path: Path) -> None:
        """Opens or begins the file, and removes a torn line that a killed process left. Raises OSError."""
        self._file = path.open("a+b", buffering=0)
        self._end = _end_of_lines(self._file.fileno())
        self._file.truncate(self._end)

    def write(self, line: str) -> None:
        """Appends a line, given without its newline. Raises OSError if it cannot be written as a whole."""
        rest = memoryview(f"{line}\n".encode())
        end = self._end + len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]  # a disk that fills up takes only a part
        except OSError:
            # Otherwise the next line would be joined to the torn one and lost too.
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end = end

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _end_of_lines(descriptor: int) -> int:
    """The offset after the last newline; 0 if there is none."""
    begin = end = os.fstat(descriptor).st_size
    while begin > 0:
        begin = max(0, begin - _LOOK_BACK_BYTES)
        found = os.pread(descriptor, _LOOK_BACK_BYTES, begin)[: end - begin].rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def tail(path: Path, num_bytes: int = sys.maxsize) -> list[str]:
    """The whole lines in the last num_bytes of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - num_bytes))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return lines[1:] if size > num_bytes else lines


def read_objects(path: Path, num_bytes: int = sys.maxsize) -> list[dict[str, Any]]:
    """The JSON objects in the last num_bytes of a file, one a line; other lines are left out."""
    found = []
    for line in tail(path, num_bytes):
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]
