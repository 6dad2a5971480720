"""Turns SIGINT, SIGTERM and SIGHUP into a request that the coordinator polls; so it saves before it stops.

Owns the handlers during a run; imports nothing of the project.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """A second signal: the run ends without saving. signal: its number."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.signal = number


class StopSignals:
    """Within the block, the first SIGINT or SIGTERM requests a stop, and the second raises Interrupted.

    SIGHUP requests a stop, too, unless the process ignores it, as under nohup. A terminal that closes may
    send it twice, and other signals beside it, so it never counts as one of the two.
    Outside the main thread, where Python allows no handlers, the block has no effect.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._previous[number] = signal.getsignal(number)
            if self._previous[signal.SIGHUP] == signal.SIG_IGN:
                del self._previous[signal.SIGHUP]
        self.reinstall()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reinstall(self) -> None:
        """Installs the handlers again: ray.init replaces that of SIGTERM."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Ignores further signals: the run is closing, which takes a second or two."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def request(self) -> str | None:
        """The reason to stop, or None."""
        return None if self.received is None else f"stopped by {self.received.name}"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received in (None, signal.SIGHUP):
            self.received = signal.Signals(number)
        elif number != signal.SIGHUP:
            raise Interrupted(signal.Signals(number))
