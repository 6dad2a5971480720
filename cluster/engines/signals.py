"""SIGINT and SIGTERM as a request that the coordinator polls, so that everything is saved first.

Owns the handlers while a run goes on; imports nothing of ours.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """A second signal: the run ends without saving. signal: which one."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.signal = number


class StopSignals:
    """Within the block, the first SIGINT or SIGTERM asks for a stop, the second raises Interrupted.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reinstall(self) -> None:
        """Takes SIGTERM back after ray.init, which replaces its handler."""
        if self._previous:
            signal.signal(signal.SIGINT, self._handle)
            signal.signal(signal.SIGTERM, self._handle)

    def ignore(self) -> None:
        """From now on signals change nothing: everything is being closed, which takes a second or two."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def request(self) -> str | None:
        """The reason to stop, or None."""
        return None if self.received is None else f"stopped by {self.received.name}"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted(signal.Signals(number))
        self.received = signal.Signals(number)
