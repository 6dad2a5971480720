"""The summary of a group of seeds: how each one ended, and the interquartile mean over all of them.

Owns its numbers and its text; must not import torch or ray.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cluster.record.run_dir import holds_run
from cluster.record.seed_group import SeedGroup
from cluster.report.charts import Interval, interval
from cluster.report.runs import is_number, read_run
from cluster.wording import duration, number, quantity
from replay_service.journal.durable_files import write_whole

_HEADINGS = ("seed", "best return", "env steps", "updates", "time", "end")


@dataclass(frozen=True)
class SeedResult:
    """How one seed's run stands. best_return_mean: of its best version; None before one was confirmed."""

    seed: int
    run_dir: str
    end: str
    best_return_mean: float | None
    env_steps: int
    updates: int
    seconds: float


@dataclass(frozen=True)
class SeedSummary:
    """The results of a group's seeds in order, and their interval; None while no seed has a best version."""

    results: tuple[SeedResult, ...]
    best_return: Interval | None

    @property
    def text(self) -> str:
        """A line for each seed, and one with the interval, which names the seeds that it leaves out."""
        lines = [_HEADINGS, *map(_cells, self.results)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.rjust, cells[:-1], widths)) + f"  {cells[-1]}" for cells in lines]
        missing = [str(result.seed) for result in self.results if result.best_return_mean is None]
        without = f"; without a best version: seed {', '.join(missing)}" if missing else ""
        if self.best_return is None:
            return "\n".join([*table, "no seed has a best version yet"])
        found = self.best_return
        return "\n".join(
            [
                *table,
                f"best return over {quantity(found.seeds, 'seed')}: IQM {number(found.iqm, 2)}, 95 % "
                f"interval {number(found.low, 2)} to {number(found.high, 2)}{without}",
            ]
        )


def summarize(group: SeedGroup) -> SeedSummary:
    """The summary of the runs as they stand. Raises ConfigError if a run's settings cannot be read."""
    results = tuple(_result(group, seed) for seed in group.seeds)
    best = [result.best_return_mean for result in results if result.best_return_mean is not None]
    return SeedSummary(results, interval(best))


def write_summary(group: SeedGroup) -> SeedSummary:
    """Writes the summary into the group's folder, and returns it. Raises OSError, ConfigError."""
    summary = summarize(group)
    write_whole(group.summary, msgspec.json.format(msgspec.json.encode(summary)))
    return summary


def _result(group: SeedGroup, seed: int) -> SeedResult:
    path = group.run_dir(seed)
    if not holds_run(path):
        return SeedResult(seed, path.name, "has not begun", None, 0, 0, 0.0)
    run = read_run(path)
    last, best = run.last, run.last.get("best_return_mean")
    return SeedResult(
        seed,
        path.name,
        run.end.splitlines()[0],
        best if is_number(best) else None,
        int(last.get("env_steps_total", 0)),
        int(last.get("updates_total", 0)),
        float(last.get("run_seconds", 0.0)),
    )


def _cells(result: SeedResult) -> tuple[str, ...]:
    return (
        str(result.seed),
        number(result.best_return_mean, 2),
        f"{result.env_steps:,}",
        f"{result.updates:,}",
        duration(result.seconds),
        result.end,
    )
