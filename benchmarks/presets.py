"""Presets by the commands a user gives: wall time of `qfleet train`, and what `qfleet eval` says of the
weights that the run delivers, over 500 fresh greedy episodes. docs/benchmarks.md has the table.

Run as `python -m benchmarks.presets [CASE …] [--seeds N] [--runtime local|serial] [--data FILE]`. Runs that
the file holds are not repeated, so a stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.recorded_runs import json_lines, read_runs, write_runs
from cluster.settings.load_config import PRESETS

DATA = PRESETS.parent / "docs" / "presets.json"
SEEDS = 3
EPISODES = 500
EVALUATION_SEED = 1_000
"""The seed of `qfleet eval` is this plus the run's own seed."""


@dataclass(frozen=True)
class Case:
    """The mean return that every seed must reach, and RL Zoo's score for DQN, of the preset of this name."""

    bar: float
    zoo_dqn: float


# RL Zoo's scores: the DQN rows of its benchmark.md.
CASES: Mapping[str, Case] = {
    "acrobot": Case(-70.0, zoo_dqn=-76.6),
    "mountaincar": Case(-101.0, zoo_dqn=-100.8),
    "lunarlander": Case(260.0, zoo_dqn=154.0),
}


@dataclass(frozen=True)
class Run:
    """One run: wall seconds of the whole command, mean and deviation of EPISODES greedy returns."""

    case: str
    seed: int
    runtime: str
    seconds: float
    env_steps: int
    updates: int
    version: int
    mean: float
    std: float


def one_run(name: str, seed: int, runtime: str, overrides: Sequence[str] = ()) -> Run:
    """Trains and evaluates in processes of their own. Raises CalledProcessError where a command fails."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        train = ["train", str(PRESETS / f"{name}.yaml"), "--run-dir", str(run_dir)]
        settings = [part for override in overrides for part in ("--set", override)]
        began = perf_counter()
        _qfleet(*train, "--seed", str(seed), "--runtime", runtime, *settings)
        seconds = perf_counter() - began
        asked = ("--episodes", str(EPISODES), "--seed", str(EVALUATION_SEED + seed), "--json")
        played = json.loads(_qfleet("eval", str(run_dir), *asked))
        last = json_lines(run_dir / "metrics.jsonl")[-1]
    return Run(
        case=name,
        seed=seed,
        runtime=runtime,
        seconds=round(seconds, 1),
        env_steps=last["env_steps_total"],
        updates=last["updates_total"],
        version=played["version"],
        mean=round(played["mean"], 2),
        std=round(played["std"], 2),
    )


def table(runs: Sequence[Run]) -> str:
    """A Markdown table with a row for each case and runtime."""
    rows = [
        "| | runtime | at the bar | mean of each seed, worst first | seconds, median (range) | Zoo's DQN |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        for runtime in sorted({run.runtime for run in runs if run.case == name}):
            group = [run for run in runs if run.case == name and run.runtime == runtime]
            means = sorted(run.mean for run in group)
            seconds = [run.seconds for run in group]
            reached = sum(mean >= case.bar for mean in means)
            cells = (
                name,
                runtime,
                f"{reached} of {len(group)} (≥ {case.bar:g})",
                ", ".join(f"{mean:.1f}" for mean in means),
                f"{median(seconds):.0f} ({min(seconds):.0f} to {max(seconds):.0f})",
                f"{case.zoo_dqn:g}",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presets", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 to N - 1; default: %(default)s")
    parser.add_argument("--runtime", choices=("local", "serial"), default="local")
    parser.add_argument("--data", type=Path, default=DATA, help="default: docs/presets.json")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are: {', '.join(CASES)}")
    runs = read_runs(options.data, Run)
    done = {(run.case, run.seed, run.runtime) for run in runs}
    for name in options.cases or CASES:
        for seed in range(options.seeds):
            if (name, seed, options.runtime) in done:
                continue
            run = one_run(name, seed, options.runtime)
            runs.append(run)
            write_runs(options.data, runs)
            print(f"{name:24s} seed {seed} {run.seconds:7.1f} s, mean {run.mean:.1f}", flush=True)
    print(table(runs))


def _qfleet(*arguments: str) -> str:
    """Standard output of a qfleet command; what it says on standard error is passed on."""
    command = [sys.executable, "-m", "cluster.main", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
