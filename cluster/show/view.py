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

from cluster.metrics.snapshot import Snapshot
from cluster.record.events import Event
from cluster.record.recorder import Observer
from cluster.settings.resolved import ResolvedStop
from cluster.show.progress import progress
from cluster.wording import duration, number

if TYPE_CHECKING:
    from rich.console import Console

_MIN_GAP_SECONDS, _MAX_GAP_SECONDS = 1.0, 60.0
_MAX_RETURNS = 2_048
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
    """Prints a line for each event, and one with metrics at intervals that grow with the run to a minute."""

    def __init__(self, headline: Headline, stop: ResolvedStop, stream: TextIO) -> None:
        self._headline = headline
        self._stop = stop
        self._stream = stream
        self._next_seconds = 0.0
        self._pending: Snapshot | None = None

    def __enter__(self) -> Self:
        self._print(self._headline.text)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending is not None:
            self._print(metrics_line(self._pending, self._stop))

    def metrics(self, snapshot: Snapshot) -> None:
        """Prints a line of the main metrics if the interval has passed."""
        if snapshot.run_seconds < self._next_seconds:
            self._pending = snapshot
            return
        gap = min(max(0.1 * snapshot.run_seconds, _MIN_GAP_SECONDS), _MAX_GAP_SECONDS)
        self._next_seconds, self._pending = snapshot.run_seconds + gap, None
        self._print(metrics_line(snapshot, self._stop))

    def event(self, event: Event) -> None:
        """Prints the event with its time."""
        self._print(f"{event.run_seconds:7.1f} s | {event.line}")

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def metrics_line(snapshot: Snapshot, stop: ResolvedStop) -> str:
    """The main metrics in one line."""
    share, left = progress(snapshot, stop)
    parts = [
        f"{snapshot.run_seconds:7.1f} s",
        *([] if share is None else [f"{share:4.0%}"]),
        *([] if left is None else [f"ETA {duration(left)}"]),
        f"steps {snapshot.env_steps_total:,}",
        f"updates {snapshot.updates_total:,}",
        f"return {number(snapshot.train_return_mean)}",
        f"greedy {number(snapshot.evaluation_return_mean)}",
        f"{snapshot.env_steps_per_second:,.0f} steps/s",
        f"{snapshot.updates_per_second:,.0f} updates/s",
        f"samples/insert {snapshot.samples_per_insert:.2f} of {snapshot.samples_per_insert_target:g}",
        f"lag {number(snapshot.policy_lag_updates, 0)}",
    ]
    return " | ".join([*parts, snapshot.verdict.line] if snapshot.verdict else parts)


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
        # No timer redraws the panel: that would cost about 1 % of a core.
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        self._print(self._headline.text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def metrics(self, snapshot: Snapshot) -> None:
        """Redraws the panel."""
        from cluster.show.panel import Screen

        self._returns.take(snapshot)
        headline, returns = self._headline, self._returns.values
        screen = Screen(headline.title, str(headline.run_dir), self._stop, snapshot, returns)
        self._live.update(screen, refresh=True)

    def event(self, event: Event) -> None:
        """Prints the event above the panel."""
        self._print(f"{event.run_seconds:7.1f} s  {event.line}", _STYLES.get(event.kind))

    def _print(self, text: str, style: str | None = None) -> None:
        self._live.console.print(text, style=style, highlight=False, markup=False)
