"""The panel: a run's newest figures laid out for a terminal of any width.

Owns layout and colours only; pure, must not import ray or torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.metrics.snapshot import Snapshot
from cluster.settings.config import StopConfig
from cluster.show.progress import progress
from cluster.wording import byte_size, count, duration, figure

_BLOCKS = "▁▂▃▄▅▆▇█"
_GROUP_CELLS = 26
_WIDEST = 220


@dataclass(frozen=True)
class Screen:
    """What one drawing of the panel shows.

    stop: None for a run that has ended. returns: mean training returns, oldest first. note: how the run
    stands, if that is worth a line.
    """

    title: str
    place: str
    stop: StopConfig | None
    snapshot: Snapshot
    returns: Sequence[float] = ()
    note: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, _WIDEST)
        inner = width - 4
        parts = [
            *([] if self.stop is None else [_progress_line(self.snapshot, self.stop, inner)]),
            *_return_line(self.returns, inner),
            *_groups(self.snapshot, inner),
            *_says(self.snapshot, self.note),
        ]
        yield Panel(
            Group(*parts),
            title=Text(f"{self.title} · {duration(self.snapshot.run_seconds)}", style="bold"),
            subtitle=Text(self.place, style="dim", overflow="ellipsis"),
            title_align="left",
            subtitle_align="left",
            border_style="dim",
            box=box.ROUNDED,
            width=width,
        )


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as at most `width` bars, each the mean of its share of them, from their least to greatest."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [len(values) * bar // count for bar in range(count + 1)]
    means = [fmean(values[low:high]) for low, high in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BLOCKS[3] * count
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((mean - low) / (high - low) * top)] for mean in means)


def _progress_line(snapshot: Snapshot, stop: StopConfig, width: int) -> RenderableType:
    share, left = progress(snapshot, stop)
    if share is None:
        ends = (
            f"runs until the greedy return reaches {stop.target_return:g}"
            if stop.target_return is not None
            else "runs until it is stopped"
        )
        return Text(ends, style="dim")
    most = "at most " if stop.target_return is not None else ""
    text = f"{share:4.0%}  {'' if left is None else f'{most}{duration(left)} left'}"
    line = Table.grid(padding=(0, 1))
    # The text may shrink and grow; the bar beside it must not.
    line.add_row(
        ProgressBar(total=1.0, completed=share, width=max(10, width - 28), complete_style="cyan"), Text(text)
    )
    return line


def _return_line(returns: Sequence[float], width: int) -> Iterator[RenderableType]:
    if len(returns) < 2:
        return
    low, high = figure(min(returns)), figure(max(returns))
    bars = sparkline(returns, width - len("training return ") - len(low) - len(high) - 2)
    yield Text.assemble(("training return ", "dim"), f"{low} ", (bars, "green"), f" {high}", no_wrap=True)


def _groups(snapshot: Snapshot, width: int) -> Iterator[RenderableType]:
    groups = (
        (
            "return",
            ("training", figure(snapshot.train_return_mean)),
            ("greedy", figure(snapshot.evaluation_return_mean)),
            ("best", figure(snapshot.best_return_mean)),
            ("epsilon", figure(snapshot.epsilon, 3)),
        ),
        (
            "learning",
            ("updates", count(snapshot.updates_total)),
            ("updates/s", count(snapshot.updates_per_second)),
            ("loss", figure(snapshot.loss, 4)),
            ("mean Q", figure(snapshot.q_mean, 2)),
        ),
        (
            "acting",
            ("env steps", count(snapshot.env_steps_total)),
            ("env steps/s", count(snapshot.env_steps_per_second)),
            ("episodes", count(snapshot.episodes_total)),
            ("lag, updates", figure(snapshot.policy_lag_updates, 0)),
        ),
        (
            "replay",
            ("transitions", count(snapshot.replay_transitions)),
            ("memory", byte_size(snapshot.replay_bytes)),
            ("samples/insert", f"{snapshot.samples_per_insert:.2f}"),
            ("its target", f"{snapshot.samples_per_insert_target:g}"),
        ),
        (
            "time",
            ("learner updates", f"{snapshot.learner_update_share:.0%}"),
            ("learner waits", f"{snapshot.learner_wait_share:.0%}"),
            ("actors work", f"{snapshot.actor_busy_share:.0%}"),
            ("checkpoint age", _age(snapshot.checkpoint_age_seconds)),
        ),
        (
            "fleet",
            ("roles up", _up(snapshot)),
            ("replaced", count(snapshot.restarts_total)),
            ("skipped", count(snapshot.skipped_updates_total)),
            ("memory", byte_size(round(sum((snapshot.process_resident_memory_bytes or {}).values())))),
        ),
    )
    beside = max(1, min(len(groups), (width + 2) // _GROUP_CELLS))
    for first in range(0, len(groups), beside):
        row = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for _ in range(beside):
            row.add_column(ratio=1)
        row.add_row(*(_group(*group) for group in groups[first : first + beside]))
        yield Text()
        yield row


def _group(title: str, *rows: tuple[str, str]) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, min_width=6)
    for label, value in rows:
        table.add_row(label, value)
    return Group(Text(title, style="bold cyan"), table)


def _up(snapshot: Snapshot) -> str:
    if snapshot.roles_up is None or snapshot.roles_wanted is None:
        return "-"
    return f"{sum(snapshot.roles_up.values()):.0f} of {sum(snapshot.roles_wanted.values()):.0f}"


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _says(snapshot: Snapshot, note: str | None) -> Iterator[RenderableType]:
    lines = [
        *([Text(note)] if note else []),
        *([Text(snapshot.verdict.line, style="cyan")] if snapshot.verdict else []),
        *(Text(f"! {warning.text}", style="bold yellow") for warning in snapshot.warnings),
    ]
    if lines:
        yield Text()
        yield from lines
