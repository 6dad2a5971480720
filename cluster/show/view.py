"""The view of a run in its own terminal: a live panel, or lines if the terminal cannot draw one.

Owns the times at which it is updated; must not import ray or torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from cluster.metrics.snapshot import Snapshot, Stage
from cluster.record.events import Event
from cluster.record.recorder import Observer
from cluster.settings.resolved import ResolvedStop
from cluster.show.progress import is_starting, progress, start_text
from cluster.wording import duration, short, wrapped

if TYPE_CHECKING:
    from rich.console import Console

_MIN_GAP_SECONDS, _MAX_GAP_SECONDS = 1.0, 60.0
_MAX_RETURNS = 2_048
LINE_WIDTH = 120
_INDENT = " " * 10 + "|   "
_STYLES = {"failed": "red", "warning": "yellow"}


class View(Observer, AbstractContextManager["View"], Protocol):
    """An observer and context manager: entered before the run starts, left after it has ended."""


@dataclass(frozen=True)
class Headline:
    """The facts about a run at the top of a view. plan: see Plan.short. preset: see preset_text."""

    env_id: str
    runtime: str
    run_dir: Path
    metrics_url: str
    plan: str
    preset: str = ""

    @property
    def title(self) -> str:
        """Environment and runtime."""
        return f"{self.env_id} · {self.runtime}"

    @property
    def text(self) -> str:
        """Environment and runtime, preset, run directory and address of the metrics, and the plan."""
        where = f"{self.run_dir}, metrics at {self.metrics_url}" if self.metrics_url else str(self.run_dir)
        title = f"{self.env_id} on the {self.runtime} runtime"
        return "\n".join(filter(None, (title, self.preset, where, self.plan)))


def make_view(headline: Headline, stop: ResolvedStop, stream: TextIO | None = None) -> View:
    """A live panel if the stream (default: sys.stdout) is a terminal that can draw it, else lines."""
    stream = stream or sys.stdout
    return LiveView(headline, stop) if can_draw(stream) else LineView(headline, stop, stream)


@contextmanager
def shown(view: View) -> Iterator[View]:
    """Shows the view within the block; one whose terminal is gone neither prevents the block nor fails it."""
    # rich raises SystemExit where its terminal's pipe is broken.
    with suppress(Exception, SystemExit):
        view.__enter__()
    try:
        yield view
    finally:
        with suppress(Exception, SystemExit):
            view.__exit__(*sys.exc_info())


def can_draw(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can move its cursor and show more than ASCII."""
    utf = (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")
    return stream.isatty() and utf and os.environ.get("TERM", "") not in ("dumb", "unknown")


class LineView:
    """Prints lines of at most 120 characters, and nothing after the end.

    There is one for each event, one whenever the verdict names another stage, and one with metrics at
    intervals that grow with the run to a minute.
    """

    def __init__(self, headline: Headline, stop: ResolvedStop, stream: TextIO) -> None:
        self._headline = headline
        self._stop = stop
        self._stream = stream
        self._next_seconds = 0.0
        self._pending: Snapshot | None = None
        self._stage: Stage | None = None

    def __enter__(self) -> Self:
        for line in self._headline.text.splitlines():
            self._print(line, "  ")
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def metrics(self, snapshot: Snapshot) -> None:
        """Prints a line of the main metrics if the interval has passed, and a changed verdict at once."""
        if snapshot.verdict is not None and snapshot.verdict.stage != self._stage:
            self._stage = snapshot.verdict.stage
            self._print(f"{_clock(snapshot.run_seconds)} | {snapshot.verdict.line}")
        self._pending = snapshot
        if snapshot.run_seconds >= self._next_seconds:
            gap = min(max(0.1 * snapshot.run_seconds, _MIN_GAP_SECONDS), _MAX_GAP_SECONDS)
            self._next_seconds = snapshot.run_seconds + gap
            self._flush()

    def event(self, event: Event) -> None:
        """Prints the event with its time."""
        if event.kind in ("ended", "failed"):
            self._flush()
        self._print(f"{_clock(event.run_seconds)} | {event.line}")

    def _flush(self) -> None:
        if self._pending is not None:
            self._print(metrics_line(self._pending, self._stop))
        self._pending = None

    def _print(self, text: str, indent: str = _INDENT) -> None:
        print(wrapped(text, LINE_WIDTH, indent), file=self._stream, flush=True)


def metrics_line(snapshot: Snapshot, stop: ResolvedStop) -> str:
    """The main metrics in one line of at most 120 characters, or what the run waits for at its start."""
    if snapshot.env_steps_total == 0:
        return f"{_clock(snapshot.run_seconds)} | {start_text(snapshot)}"
    if snapshot.updates_total == 0 and is_starting(snapshot):
        acted = f"steps {short(snapshot.env_steps_total)}"
        return f"{_clock(snapshot.run_seconds)} | {acted} | {start_text(snapshot)}"
    share, left = progress(snapshot, stop)
    target = stop.target_return
    greedy = f"greedy {short(snapshot.evaluation_return_mean)}"
    parts = [
        _clock(snapshot.run_seconds),
        *([] if share is None else [f"{share:4.0%}"]),
        # Nobody knows when a target will be reached.
        *([] if left is None or target is not None else [f"ETA {duration(left)}"]),
        f"steps {short(snapshot.env_steps_total)}",
        f"updates {short(snapshot.updates_total)}",
        f"return {short(snapshot.train_return_mean)}",
        greedy if target is None else f"{greedy} of {short(target)}",
        f"{short(snapshot.env_steps_per_second)} steps/s",
        f"{short(snapshot.updates_per_second)} updates/s",
    ]
    while len(line := " | ".join(parts)) > LINE_WIDTH:
        parts.pop()
    return line


def _clock(run_seconds: float) -> str:
    return f"{run_seconds:7.1f} s"


class Returns:
    """Training returns of a whole run for a sparkline, thinned as the run grows."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._every = 1
        self._seen = 0

    def take(self, snapshot: Snapshot) -> None:
        """Keeps the return of every n-th snapshot; n doubles whenever 2,048 are held."""
        if snapshot.train_return_mean is None:
            return
        if self._seen % self._every == 0:
            self.values.append(snapshot.train_return_mean)
        self._seen += 1
        if len(self.values) >= _MAX_RETURNS:
            self.values = self.values[::2]
            self._every *= 2


class LiveView:
    """Redraws a panel in place whenever metrics arrive; events scroll above it."""

    def __init__(self, headline: Headline, stop: ResolvedStop, console: Console | None = None) -> None:
        from rich.live import Live

        self._headline = headline
        self._stop = stop
        self._returns = Returns()
        self._last: Snapshot | None = None
        self._ends: list[Event] = []
        # No timer redraws the panel: that would cost about 1 % of a core.
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        self._print(self._headline.text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._draw(self._last, stop=None)
        self._live.__exit__(kind, error, trace)
        for event in self._ends:
            self._say(event)

    def metrics(self, snapshot: Snapshot) -> None:
        """Redraws the panel."""
        self._returns.take(snapshot)
        self._last = snapshot
        self._draw(snapshot, self._stop)

    def _draw(self, snapshot: Snapshot, stop: ResolvedStop | None) -> None:
        """Draws the panel; without `stop` it is the last one."""
        from cluster.show.panel import Screen

        headline, returns = self._headline, self._returns.values
        screen = Screen(headline.title, str(headline.run_dir), stop, snapshot, returns)
        self._live.update(screen, refresh=True)

    def event(self, event: Event) -> None:
        """Prints the event above the panel, or the end of the run below it."""
        if event.kind in ("ended", "failed"):
            self._ends.append(event)
        else:
            self._say(event)

    def _say(self, event: Event) -> None:
        self._print(f"{_clock(event.run_seconds)}  {event.line}", _STYLES.get(event.kind))

    def _print(self, text: str, style: str | None = None) -> None:
        self._live.console.print(text, style=style, highlight=False, markup=False)
