"""Learning curves of long runs on images: MinAtar Breakout beside the DQN of MinAtar's paper, and Pong.

Run as `python -m benchmarks.learning_curves CASE [--seeds 0 1 2] [--seconds S]`; it takes up to hours on two
cores and can be stopped: the next call plays the seeds that the data file lacks, and resumes an interrupted
run from its newest checkpoint below --runs. Each call draws the plot anew beside the data (needs matplotlib).

A run of Breakout ends after 5 million frames, or when its greedy return, confirmed on other seeds, is 1.2
times the return of the paper, which is a training return: therefore both are kept. A run of Pong ends after
--seconds. benchmarks/minatar.py has all five games, at equal numbers of frames.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.minatar import PAPER_DQN
from benchmarks.recorded_runs import read_runs, write_runs
from cluster.api import train
from cluster.report import runs as recorded
from cluster.settings.load_config import PRESETS, load_config

DATA = PRESETS.parent / "docs" / "learning_curves.json"
MARGIN = 1.2
MOST_POINTS = 200


@dataclass(frozen=True)
class Case:
    """A preset with further settings. paper_dqn: the return of the paper's DQN, if there is one."""

    preset: str
    overrides: tuple[str, ...]
    frames_per_step: int = 1
    paper_dqn: float | None = None


CASES: Mapping[str, Case] = {
    "breakout": Case(
        "minatar",
        ("env.id=MinAtar/Breakout-v1", f"stop.target_return={MARGIN * PAPER_DQN['Breakout']}"),
        paper_dqn=PAPER_DQN["Breakout"],
    ),
    # The preset is the paper's, for 10 million steps; these settings suit half a million, a few hours.
    "pong": Case(
        "atari",
        (
            "actors.n_step=3",
            "actors.epsilon_end=0.02",
            "actors.epsilon_decay_env_steps=60_000",
            "replay.capacity=200_000",
            "learner.double=true",
            "learner.learning_rate=2e-4",
            "learner.target_update_env_steps=4_000",
            "pacing.learning_starts=10_000",
            "evaluation.every_updates=10_000",
            "evaluation.episodes=5",
        ),
        frames_per_step=4,
    ),
}


@dataclass(frozen=True)
class Run:
    """One run. curve: (env steps, seconds, training return); evaluations: (version, mean greedy return).

    greedy_return: the return of the delivered version, confirmed on other seeds; None without such a version.
    """

    case: str
    seed: int
    env_steps: int
    updates: int
    seconds: float
    train_return: float
    greedy_return: float | None
    curve: tuple[tuple[int, float, float], ...]
    evaluations: tuple[tuple[int, float], ...]


def one_run(name: str, seed: int, run_dir: Path, seconds: float | None) -> Run:
    """Plays a run to its end, from its newest checkpoint if it has one. Raises SystemExit on a signal."""
    case = CASES[name]
    overrides = [*case.overrides, f"run.seed={seed}", "metrics.every_seconds=10"]
    if seconds is not None:
        overrides.append(f"stop.seconds={seconds}")
    result = train(load_config(PRESETS / f"{case.preset}.yaml", overrides), run_dir, resume="auto")
    if result.signal is not None:
        raise SystemExit(128 + result.signal)  # a later call goes on from here
    return read_run(name, seed, run_dir)


def read_run(name: str, seed: int, run_dir: Path) -> Run:
    """Reads a run, which may go on, from its directory."""
    told = recorded.read_run(run_dir)
    scored = [line for line in told.evaluations if not line["confirms"]]
    curve = [
        (line["env_steps_total"], round(line["run_seconds"], 1), round(line["train_return_mean"], 3))
        for line in told.metrics
        if line.get("train_return_mean") is not None
    ]
    every = -(-len(curve) // MOST_POINTS)
    last = told.last
    return Run(
        case=name,
        seed=seed,
        env_steps=last["env_steps_total"],
        updates=last["updates_total"],
        seconds=round(last["run_seconds"], 1),
        train_return=curve[-1][2],
        greedy_return=last.get("best_return_mean"),
        curve=tuple(curve[::-every][::-1]),
        evaluations=tuple((line["version"], round(line["return_mean"], 3)) for line in scored),
    )


def sentence(run: Run) -> str:
    """A sentence about the run."""
    case = CASES[run.case]
    text = (
        f"{run.case} seed {run.seed}: greedy {run.greedy_return or math.nan:.1f}, "
        f"training {run.train_return:.1f} after {run.env_steps * case.frames_per_step:,} frames "
        f"and {run.seconds:,.0f} s"
    )
    if case.paper_dqn is None:
        return text
    # The paper's return is a training return, so both returns must be higher.
    beats = "beats" if min(run.greedy_return or 0.0, run.train_return) > case.paper_dqn else "is below"
    return f"{text}; {beats} the paper's DQN ({case.paper_dqn:g})"


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draws a panel for each case: training return over millions of frames, with a line for each seed."""
    try:
        from matplotlib import pyplot, rcParams
    except ImportError:
        print(f"{path.name} is left as it is: matplotlib is not installed")
        return
    rcParams["svg.hashsalt"] = "learning_curves"
    names = [name for name in CASES if any(run.case == name for run in runs)]
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.2 * len(names), 3.0), squeeze=False)
    for panel, name in zip(axes[0], names, strict=True):
        case = CASES[name]
        for run in runs:
            if run.case == name:
                frames = [steps * case.frames_per_step / 1e6 for steps, _, _ in run.curve]
                returns = [point[2] for point in run.curve]
                panel.plot(
                    frames, returns, linewidth=1.0, label=f"seed {run.seed}, {run.seconds / 60:.0f} min"
                )
        if case.paper_dqn is not None:
            panel.axhline(case.paper_dqn, color="#999999", linewidth=0.8, linestyle="--")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("million frames", fontsize=8)
        panel.legend(fontsize=7)
    axes[0][0].set_ylabel("return while training", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_curves", description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, help="the longest time of each run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=DATA, help="default: docs/learning_curves.json")
    options = parser.parse_args(arguments)
    runs = read_runs(options.data, Run)
    for seed in options.seeds:
        if (options.case, seed) not in {(run.case, run.seed) for run in runs}:
            run_dir = options.runs / f"{options.case}-{seed}"
            runs.append(one_run(options.case, seed, run_dir, options.seconds))
            write_runs(options.data, runs)
    for run in runs:
        print(sentence(run))
    plot(runs, options.data.with_suffix(".svg"))


if __name__ == "__main__":
    main()
