"""The panel: the newest metrics of a run, laid out for a terminal of any width.

Owns layout and colors; pure, must not import ray or torch.
"""

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

from cluster.metrics.snapshot import ByLabel, Snapshot
from cluster.settings.resolved import ResolvedStop
from cluster.show.progress import progress, start_text
from cluster.wording import byte_size, count, duration, short

_BLOCKS = "▁▂▃▄▅▆▇█"
_GROUP_CELLS = 26
_MAX_WIDTH = 220
# The border, the line above the messages, and the line of the cursor.
_FRAME_LINES = 4


@dataclass(frozen=True)
class Screen:
    """The contents of the panel at one moment.

    stop: None for a run that has ended. returns: mean training returns, oldest first. note: a line about
    the state of the run, if any.
    """

    title: str
    place: str
    stop: ResolvedStop | None
    snapshot: Snapshot
    returns: Sequence[float] = ()
    note: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, _MAX_WIDTH)
        inner = width - 4
        parts = [
            *([] if self.stop is None else [_progress_line(self.snapshot, self.stop, inner)]),
            *_return_line(self.returns, inner),
            *_groups(self.snapshot, self.stop.target_return if self.stop else None, inner),
        ]
        rows = [row for message in self._messages() for row in message.wrap(console, inner)]
        if console.is_terminal:
            # Else the progress, which is at the top, would leave the screen.
            used = sum(len(console.render_lines(part, options.update(width=inner))) for part in parts)
            rows = rows[: max(0, options.size.height - used - _FRAME_LINES)]
        if rows:
            parts += [Text(), *rows]
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

    def _messages(self) -> Iterator[Text]:
        """The note, and while the run goes on what diagnosis says."""
        if self.note:
            yield Text(self.note)
        if self.stop is None:
            return
        for warning in self.snapshot.warnings:
            yield Text(f"! {warning.text}", style="bold yellow")
        if self.snapshot.verdict:
            yield Text(self.snapshot.verdict.line, style="cyan")


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as at most `width` bars; each bar is the mean of an equal share of them."""
    if not values or width < 1:
        return ""
    bars = min(width, len(values))
    edges = [len(values) * bar // bars for bar in range(bars + 1)]
    means = [fmean(values[low:high]) for low, high in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BLOCKS[3] * bars
    return "".join(_BLOCKS[round((mean - low) / (high - low) * (len(_BLOCKS) - 1))] for mean in means)


def _progress_line(snapshot: Snapshot, stop: ResolvedStop, width: int) -> RenderableType:
    if snapshot.env_steps_total == 0:
        return Text(start_text(snapshot), style="dim")
    target = stop.target_return
    share, left = progress(snapshot, stop)
    if share is None:
        end = "it is stopped" if target is None else f"the greedy return reaches {short(target)}"
        return Text(f"runs until {end}", style="dim")
    most = "" if target is None else "at most "
    text = f"{share:4.0%}  {'' if left is None else f'{most}{duration(left)} left'}"
    bar = ProgressBar(total=1.0, completed=share, width=max(10, width - 28), complete_style="cyan")
    line = Table.grid(padding=(0, 1))
    # The width of the bar is fixed, that of the text beside it is not.
    line.add_row(bar, Text(text))
    return line


def _return_line(returns: Sequence[float], width: int) -> Iterator[RenderableType]:
    if len(returns) < 2:
        return
    low, high = short(min(returns)), short(max(returns))
    bars = sparkline(returns, width - len("training return ") - len(low) - len(high) - 2)
    yield Text.assemble(("training return ", "dim"), f"{low} ", (bars, "green"), f" {high}", no_wrap=True)


def _groups(snapshot: Snapshot, target: float | None, width: int) -> Iterator[RenderableType]:
    age, undrawn = snapshot.checkpoint_age_seconds, snapshot.evicted_undrawn_share
    epsilon = snapshot.epsilon
    best = short(snapshot.best_return_mean)
    groups = (
        (
            "return",
            ("training", short(snapshot.train_return_mean)),
            ("greedy", short(snapshot.evaluation_return_mean)),
            ("best", best if target is None else f"{best} of {short(target)}"),
            ("predicted", short(snapshot.q_mean)),
            ("episodes", count(snapshot.episodes_total)),
        ),
        (
            "learning",
            ("updates", count(snapshot.updates_total)),
            ("skipped", count(snapshot.skipped_updates_total)),
            ("updates/s", count(snapshot.updates_per_second)),
            ("fit error", short(snapshot.loss)),
        ),
        (
            "acting",
            ("env steps", count(snapshot.env_steps_total)),
            ("env steps/s", count(snapshot.env_steps_per_second)),
            ("random actions", "-" if epsilon is None else f"{epsilon:.1%}"),
            ("updates behind", short(snapshot.policy_lag_updates)),
        ),
        (
            "replay",
            ("transitions", count(snapshot.replay_transitions)),
            ("memory", byte_size(snapshot.replay_bytes)),
            ("times sampled", short(snapshot.samples_per_insert)),
            ("aimed at", short(snapshot.samples_per_insert_target)),
            ("episodes per env", short(snapshot.lane_episodes)),
            ("never drawn", "-" if undrawn is None else f"{undrawn:.1%}"),
        ),
        (
            "time",
            ("learner updating", f"{snapshot.learner_update_share:.0%}"),
            ("learner waiting", f"{snapshot.learner_wait_share:.0%}"),
            ("actors working", f"{snapshot.actor_busy_share:.0%}"),
            ("checkpoint age", "-" if age is None else duration(age)),
        ),
        (
            "roles",
            ("up", f"{_total(snapshot.roles_up)} of {_total(snapshot.roles_wanted)}"),
            ("restarts", count(snapshot.restarts_total)),
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


def _total(by_role: ByLabel | None) -> str:
    return "-" if by_role is None else f"{sum(by_role.values()):.0f}"
