"""The live view: what a person sees while a run goes on.

Owns layout only; a terminal gets a live panel, anything else plain lines. Must not import ray or torch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from cluster.config import StopConfig
from cluster.coordinator import Observer
from cluster.metrics import Snapshot, bottleneck

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


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
    def text(self) -> str:
        """Where to look, in two lines, and what the run will need."""
        where = f"{self.run_dir}, metrics at {self.metrics_url}"
        return f"{self.env_id} on the {self.runtime} runtime, starting\n{where}\n{self.plan}"


def make_view(headline: Headline, stop: StopConfig, stream: TextIO | None = None) -> View:
    """A live panel on a terminal, else lines."""
    stream = stream or sys.stdout
    return LiveView(headline, stop) if stream.isatty() else LineView(headline, stop, stream)


class LineView:
    """One line for each snapshot and event."""

    def __init__(self, headline: Headline, stop: StopConfig, stream: TextIO) -> None:
        self._headline = headline
        self._stop = stop
        self._stream = stream

    def __enter__(self) -> Self:
        self._say(self._headline.text)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def figures(self, snapshot: Snapshot) -> None:
        """One line of the figures that matter."""
        share, eta = progress(snapshot, self._stop)
        parts = [
            f"{snapshot.run_seconds:7.1f} s",
            f"{share:4.0%}",
            f"steps {snapshot.env_steps_total:,}",
            f"updates {snapshot.updates_total:,}",
            f"return {_figure(snapshot.train_return_mean)}",
            f"greedy {_figure(snapshot.evaluation_return_mean)}",
            f"eps {_figure(snapshot.epsilon, 2)}",
            f"{snapshot.updates_per_second:,.0f} updates/s",
            f"{snapshot.env_steps_per_second:,.0f} steps/s",
            f"samples/insert {snapshot.samples_per_insert:.2f} of {snapshot.samples_per_insert_target:g}",
            f"lag {_figure(snapshot.policy_lag_updates)}",
            f"bound by {bottleneck(snapshot)}",
        ]
        if eta is not None:
            parts.insert(2, f"ETA {_duration(eta)}")
        self._say(" | ".join(parts))

    def event(self, text: str, run_seconds: float) -> None:
        """The event with its time."""
        self._say(f"{run_seconds:7.1f} s | {text}")

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveView:
    """A panel that is redrawn in place, events scrolling above it; right on 80 columns."""

    def __init__(self, headline: Headline, stop: StopConfig) -> None:
        self._headline = headline
        self._stop = stop
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(refresh_per_second=4, transient=False)
        self._live.__enter__()
        self._live.console.print(self._headline.text, highlight=False, markup=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def figures(self, snapshot: Snapshot) -> None:
        """Redraws the panel."""
        if self._live is not None:
            self._live.update(self._table(snapshot))

    def event(self, text: str, run_seconds: float) -> None:
        """Prints the event above the panel."""
        if self._live is not None:
            self._live.console.print(f"{run_seconds:7.1f} s  {text}", highlight=False, markup=False)

    def _table(self, snapshot: Snapshot) -> Table:
        from rich import box
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        run_time = _duration(snapshot.run_seconds)
        share, eta = progress(snapshot, self._stop)
        table = Table(
            title=Text(f"{self._headline.env_id} · {self._headline.runtime} · {run_time}"),
            caption=Text(str(self._headline.run_dir)),
            box=box.ROUNDED,
            show_header=False,
            width=78,
        )
        for _ in range(2):
            table.add_column(style="dim", ratio=2, no_wrap=True)
            table.add_column(justify="right", ratio=2, no_wrap=True)
        bar = ProgressBar(total=1.0, completed=share, width=17)
        table.add_row("progress", bar, "time left", "unknown" if eta is None else _duration(eta))
        rows = (
            (
                "train return",
                _figure(snapshot.train_return_mean),
                "env steps",
                f"{snapshot.env_steps_total:,}",
            ),
            (
                "greedy return",
                _figure(snapshot.evaluation_return_mean),
                "updates",
                f"{snapshot.updates_total:,}",
            ),
            (
                "best, confirmed",
                _figure(snapshot.best_return_mean),
                "env steps/s",
                f"{snapshot.env_steps_per_second:,.0f}",
            ),
            ("epsilon", _figure(snapshot.epsilon, 3), "updates/s", f"{snapshot.updates_per_second:,.0f}"),
            (
                "loss",
                _figure(snapshot.loss, 4),
                "samples/insert",
                f"{snapshot.samples_per_insert:.2f} of {snapshot.samples_per_insert_target:g}",
            ),
            (
                "mean Q",
                _figure(snapshot.q_mean, 2),
                "policy lag",
                f"{_figure(snapshot.policy_lag_updates, 0)} updates",
            ),
            ("restarts", str(snapshot.restarts_total), "bound by", bottleneck(snapshot)),
        )
        for row in rows:
            table.add_row(*row)
        return table


def progress(snapshot: Snapshot, stop: StopConfig) -> tuple[float, float | None]:
    """Share of the way to the nearest stop condition (target return aside), and the seconds left to it."""
    shares = [
        done / limit
        for done, limit in (
            (snapshot.env_steps_total, stop.env_steps),
            (snapshot.updates_total, stop.updates),
            (snapshot.run_seconds, stop.seconds),
        )
        if limit is not None
    ]
    share = min(1.0, max(shares, default=0.0))
    left = snapshot.run_seconds * (1.0 - share) / share if share > 0.0 else None
    return share, left


def _figure(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
