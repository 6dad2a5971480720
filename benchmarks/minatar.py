"""MinAtar: training and greedy returns of one preset on all five games, at fixed numbers of frames.

Run as `python -m benchmarks.minatar [GAME ...] [--seeds 0 1 2] [--frames 2_000_000] [--runs FOLDER]`. A run
is serial, takes one core and about ten minutes a million frames; start the command twice for two cores, with
other games or seeds. It can be stopped: the next call resumes what a run lacks, also up to more frames than
before. Each call writes the table in docs/benchmarks.md and the plot beside the data anew (this one needs
matplotlib); `--table` does nothing else.

The protocol is the paper's (Young and Tian 2019, arXiv:1903.03176): sticky actions with probability 0.1, and
the mean return of the last 100 training episodes at epsilon 0.02. It plays with all six actions, qfleet with
the minimal ones (-v1 ids). The greedy return is that of the weights that the run would deliver at this point,
over episodes of other seeds than those that chose them.
"""

from __future__ import annotations

import argparse
import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.processor import processor
from benchmarks.quiet_run import quiet_run
from benchmarks.recorded_runs import between, read_runs, write_runs
from cluster.report.charts import bootstrap, iqm
from cluster.report.runs import Line, read_run
from cluster.settings.load_config import PRESETS, load_config

DATA = PRESETS.parent / "docs" / "minatar.json"
PAGE = PRESETS.parent / "docs" / "benchmarks.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- minatar begins -->", "<!-- minatar ends -->"
PAPER_DQN: Mapping[str, float] = {
    "Asterix": 17.0,
    "Breakout": 10.0,
    "Freeway": 50.0,
    "Seaquest": 20.0,  # before a fix of the game in MinAtar 1.0.11
    "SpaceInvaders": 43.0,
}
"""Training returns after 5 million frames, means of 30 runs, read off the curves in MinAtar's README."""
POINTS = (500_000, 1_000_000, 2_000_000, 5_000_000)


@dataclass(frozen=True)
class Score:
    """Returns of a run after a number of frames. greedy: None before the first confirmed version."""

    frames: int
    training: float
    greedy: float | None


@dataclass(frozen=True)
class Run:
    """One run: its scores at the POINTS that it reached, and its seconds until the last of them."""

    game: str
    seed: int
    seconds: float
    scores: tuple[Score, ...]


def one_run(game: str, seed: int, frames: int, run_dir: Path, overrides: Sequence[str] = ()) -> Run:
    """Plays a game up to a number of frames, from the newest checkpoint in run_dir if it holds one."""
    wanted = [
        f"env.id=MinAtar/{game}-v1",
        f"run.seed={seed}",
        "run.runtime=serial",
        f"stop.env_steps={frames}",
        "stop.target_return=null",
        "metrics.every_seconds=10",
    ]
    quiet_run(load_config(PRESETS / "minatar.yaml", [*overrides, *wanted]), run_dir, resume="auto")
    return scored(game, seed, read_run(run_dir).metrics)


def scored(game: str, seed: int, lines: Sequence[Line]) -> Run:
    """The scores of a run by its lines of metrics."""
    scores, seconds = [], 0.0
    for frames in POINTS:
        line = next((line for line in lines if line["env_steps_total"] >= frames), None)
        if line is None or line.get("train_return_mean") is None:
            break
        scores.append(Score(frames, line["train_return_mean"], line.get("best_return_mean")))
        seconds = line["run_seconds"]
    return Run(game, seed, round(seconds, 1), tuple(scores))


def table(runs: Sequence[Run], paper_dqn: Mapping[str, float] = PAPER_DQN, kind: str = "game") -> str:
    """A Markdown table: a row for each game and point, over the seeds that reached it."""
    lines = [
        f"| {kind} | frames | seeds | training return | greedy return | paper's DQN, 5M frames |",
        "|---|---|---|---|---|---|",
    ]
    for game, paper in paper_dqn.items():
        for frames in POINTS:
            training, greedy = returns_at(runs, game, frames)
            if training:
                seeds = str(len(training))
                row = (game, f"{frames / 1e6:g}M", seeds, interval(training), interval(greedy), f"{paper:g}")
                lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def returns_at(runs: Sequence[Run], game: str, frames: int) -> tuple[list[float], list[float]]:
    """Training returns and greedy returns of the runs of a game that reached this number of frames."""
    scores = [score for run in runs if run.game == game for score in run.scores if score.frames == frames]
    greedy = [score.greedy for score in scores if score.greedy is not None]
    return [score.training for score in scores], greedy


def interval(values: Sequence[float]) -> str:
    """The interquartile mean over seeds and, from two seeds on, its 95 % bootstrap interval in brackets."""
    if not values:
        return ""
    mean, low, high = mean_between(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({low:.1f} to {high:.1f})"


def mean_between(values: Sequence[float]) -> tuple[float, float, float]:
    """The interquartile mean of one value or more, and the ends of its 95 % bootstrap interval."""
    rows = np.array(values)[:, None]
    low, high = bootstrap(rows, iqm)
    return iqm(rows)[0], low[0], high[0]


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draws a panel for each game: interquartile means with their intervals, and each seed as a point."""
    try:
        from matplotlib import pyplot, rcParams
    except ImportError:
        print(f"{path.name} is left as it is: matplotlib is not installed")
        return
    rcParams["svg.hashsalt"] = "minatar"  # the same data give the same file
    games = [game for game in PAPER_DQN if returns_at(runs, game, POINTS[0])[0]]
    drawing, axes = pyplot.subplots(1, len(games), figsize=(2.2 * len(games), 2.7), squeeze=False)
    for panel, game in zip(axes[0], games, strict=True):
        for kind, (name, color) in enumerate((("training", "#4477aa"), ("greedy", "#aa3377"))):
            returns = {frames / 1e6: returns_at(runs, game, frames)[kind] for frames in POINTS}
            means = {millions: mean_between(values) for millions, values in returns.items() if values}
            for millions, values in returns.items():
                panel.plot([millions] * len(values), values, ".", color=color, alpha=0.35, markersize=4)
            middle, low, high = np.array(list(means.values())).reshape(-1, 3).T
            panel.plot(list(means), middle, color=color, linewidth=1.2, label=name)
            panel.fill_between(list(means), low, high, color=color, alpha=0.15, linewidth=0)
        panel.axhline(
            PAPER_DQN[game], color="#999999", linewidth=0.8, linestyle="--", label="paper's DQN, 5M"
        )
        panel.set_ylim(bottom=0)
        panel.set_title(game, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_xlabel("million frames", fontsize=8)
    axes[0][0].legend(fontsize=6)
    axes[0][0].set_ylabel("return", fontsize=8)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)


@contextmanager
def updated(data: Path) -> Iterator[list[Run]]:
    """The runs in the data file, to be changed within the block: one process at a time."""
    with data.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = read_runs(data, Run)
        yield runs
        write_runs(data, sorted(runs, key=lambda run: (run.game, run.seed)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.minatar", description=__doc__)
    parser.add_argument("games", nargs="*", metavar="GAME", help=f"default: {', '.join(PAPER_DQN)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--frames", type=int, default=2_000_000, help="frames of each run; default: %(default)s"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=DATA, help="default: docs/minatar.json")
    parser.add_argument("--table", action="store_true", help="play nothing")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.games) - set(PAPER_DQN))
    if unknown:
        parser.error(f"no game {', '.join(unknown)}; there are: {', '.join(PAPER_DQN)}")
    print(processor(), flush=True)
    wanted = [(seed, game) for seed in options.seeds for game in options.games or PAPER_DQN]
    for seed, game in () if options.table else wanted:
        # Without the lock: the run takes long, and another process plays another one meanwhile.
        found = [run for run in read_runs(options.data, Run) if (run.game, run.seed) == (game, seed)]
        if any(score.frames >= options.frames for run in found for score in run.scores):
            continue
        played = one_run(game, seed, options.frames, options.runs / f"{game}-{seed}")
        # A run without its folder begins again; where it is stopped early, the scores recorded before stay.
        kept = max([played, *found], key=lambda run: len(run.scores))
        with updated(options.data) as runs:
            runs[:] = [run for run in runs if (run.game, run.seed) != (game, seed)] + [kept]
        print(played, flush=True)
    runs = read_runs(options.data, Run)
    print(table(runs))
    plot(runs, options.data.with_suffix(".svg"))
    if options.data == DATA:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(between(page, TABLE_BEGINS, TABLE_ENDS, table(runs)), encoding="utf-8")


if __name__ == "__main__":
    main()
