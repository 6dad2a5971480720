"""The live view: what a person sees while a run goes on.

Owns when something is shown; a terminal gets a live panel, anything else a few plain lines. No ray, no torch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from cluster.metrics.snapshot import Snapshot
from cluster.record.events import Event
from cluster.record.recorder import Observer
from cluster.settings.config import StopConfig
from cluster.show.progress import progress
from cluster.wording import duration, figure

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_LEAST_GAP_SECONDS, _MOST_GAP_SECONDS = 1.0, 60.0
_HISTORY = 2_048
_STYLES = {"failed": "red", "warning": "yellow"}


class View(Observer, Protocol):
    """An observer with a beginning and an end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Headline:
    """What the view says of the run itself; plan is Plan.short."""

    env_id: str
    runtime: str
    run_dir: Path
    metrics_url: str
    plan: str

    @property
    def title(self) -> str:
        """What runs, and where."""
        return f"{self.env_id} · {self.runtime}"

    @property
    def text(self) -> str:
        """What runs, where to look, and what the run will need, a line each."""
        where = f"{self.run_dir}, metrics at {self.metrics_url}" if self.metrics_url else str(self.run_dir)
        return "\n".join(filter(None, (f"{self.env_id} on the {self.runtime} runtime", where, self.plan)))


def make_view(headline: Headline, stop: StopConfig, stream: TextIO | None = None) -> View:
    """A live panel on a terminal that can draw one, else lines."""
    stream = stream or sys.stdout
    if can_draw(stream):
        return LiveView(headline, stop)
    return LineView(headline, stop, stream)


def can_draw(stream: TextIO) -> bool:
    """Whether it is a terminal that moves its cursor and shows more than ASCII."""
    utf = (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")
    return stream.isatty() and utf and os.environ.get("TERM", "") not in ("dumb", "unknown")


class LineView:
    """A line for each event, and for figures now and then: gaps grow with the run, to a minute."""

    def __init__(self, headline: Headline, stop: StopConfig, stream: TextIO) -> None:
        self._headline = headline
        self._stop = stop
        self._stream = stream
        self._said_seconds: float | None = None
        self._unsaid: Snapshot | None = None

    def __enter__(self) -> Self:
        self._say(self._headline.text)
        return self

    def __exit__(self, *_: object) -> None:
        if self._unsaid is not None:
            self._say(metrics_line(self._unsaid, self._stop))
        self._stream.flush()

    def metrics(self, snapshot: Snapshot) -> None:
        """One line of the figures that matter, if the last one is long enough ago."""
        gap = min(max(0.1 * snapshot.run_seconds, _LEAST_GAP_SECONDS), _MOST_GAP_SECONDS)
        if self._said_seconds is not None and snapshot.run_seconds - self._said_seconds < gap:
            self._unsaid = snapshot
            return
        self._said_seconds, self._unsaid = snapshot.run_seconds, None
        self._say(metrics_line(snapshot, self._stop))

    def event(self, event: Event) -> None:
        """The event with its time."""
        self._say(f"{event.run_seconds:7.1f} s | {event.line}")

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def metrics_line(snapshot: Snapshot, stop: StopConfig) -> str:
    """The figures that matter, in one line."""
    share, left = progress(snapshot, stop)
    parts = [
        f"{snapshot.run_seconds:7.1f} s",
        *([] if share is None else [f"{share:4.0%}"]),
        *([] if left is None else [f"ETA {duration(left)}"]),
        f"steps {snapshot.env_steps_total:,}",
        f"updates {snapshot.updates_total:,}",
        f"return {figure(snapshot.train_return_mean)}",
        f"greedy {figure(snapshot.evaluation_return_mean)}",
        f"{snapshot.env_steps_per_second:,.0f} steps/s",
        f"{snapshot.updates_per_second:,.0f} updates/s",
        f"samples/insert {snapshot.samples_per_insert:.2f} of {snapshot.samples_per_insert_target:g}",
        f"lag {figure(snapshot.policy_lag_updates, 0)}",
    ]
    return " | ".join([*parts, snapshot.verdict.line] if snapshot.verdict else parts)


class Returns:
    """The training returns of a whole run in bounded memory, for a sparkline."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._every = 1
        self._seen = 0

    def take(self, snapshot: Snapshot) -> None:
        """Keeps every second one whenever there are too many."""
        if snapshot.train_return_mean is None:
            return
        if self._seen % self._every == 0:
            self.values.append(snapshot.train_return_mean)
        self._seen += 1
        if len(self.values) >= _HISTORY:
            self.values = self.values[::2]
            self._every *= 2


class LiveView:
    """A panel that is redrawn in place when figures come, events scrolling above it."""

    def __init__(self, headline: Headline, stop: StopConfig, console: Console | None = None) -> None:
        self._headline = headline
        self._stop = stop
        self._console = console
        self._returns = Returns()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        # Drawn when there is something new only: a timer would take a core's percent for nothing.
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.__enter__()
        self._live.console.print(self._headline.text, highlight=False, markup=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def metrics(self, snapshot: Snapshot, note: str | None = None) -> None:
        """Redraws the panel."""
        from cluster.show.panel import Screen

        self._returns.take(snapshot)
        if self._live is not None:
            screen = Screen(
                self._headline.title,
                str(self._headline.run_dir),
                self._stop,
                snapshot,
                self._returns.values,
                note,
            )
            self._live.update(screen, refresh=True)

    def event(self, event: Event) -> None:
        """Prints the event above the panel."""
        if self._live is not None:
            line = f"{event.run_seconds:7.1f} s  {event.line}"
            self._live.console.print(line, style=_STYLES.get(event.kind), highlight=False, markup=False)
