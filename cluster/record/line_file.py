"""A file of lines that is added to: each line is there whole, or not at all.

Owns what a full disk or a killed process leaves; must not import anything outside the standard library.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_LOOK_BACK_BYTES = 1 << 16


class LineFile:
    """Lines of UTF-8 text, written at once; nobody else may write the file meanwhile."""

    def __init__(self, path: Path) -> None:
        """Opens or begins the file; what a process that died left of a line is cut off. Raises OSError."""
        self._file = path.open("a+b", buffering=0)
        self._end = _end_of_lines(self._file.fileno())
        self._file.truncate(self._end)

    def write(self, line: str) -> None:
        """Adds a line, without its line feed. Raises OSError where it cannot be written; then nothing is."""
        rest = memoryview(f"{line}\n".encode())
        end = self._end + len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]  # a disk that gets full takes a part
        except OSError:
            # Else the next line would go on where this one broke off, and be lost, too.
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._end = end

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _end_of_lines(descriptor: int) -> int:
    """The offset behind the last line feed; 0 if there is none."""
    begin = end = os.fstat(descriptor).st_size
    while begin > 0:
        begin = max(0, begin - _LOOK_BACK_BYTES)
        found = os.pread(descriptor, _LOOK_BACK_BYTES, begin)[: end - begin].rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
