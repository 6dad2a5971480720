"""Rainbow, Ape-X and the modern preset on the same tasks, with the same env steps.

Run as `python -m benchmarks.family_tasks [PRESET …] [--seeds N]`: serial runs, some ten minutes of a core for
each seed of all. It can be stopped: runs that the file holds are not repeated. The score is the mean greedy
return of the weights delivered, over 100 fresh episodes. A preset is the same on every task, but for the
range of rainbow's atoms.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from time import process_time

from cluster.engines.threads import SINGLE_THREADED

os.environ.update(SINGLE_THREADED)  # read by numpy when it loads, as in a real run

from benchmarks.quiet_run import quiet_run
from benchmarks.recorded_runs import read_runs, write_runs
from cluster.policies.evaluate import evaluate_run
from cluster.settings.load_config import PRESETS, load_config

DATA = PRESETS.parent / "docs" / "family_tasks.json"
MEMBERS = ("rainbow", "apex", "modern")
TASKS: Mapping[str, int] = {"CartPole-v1": 100_000, "Acrobot-v1": 150_000, "LunarLander-v3": 300_000}
"""Env steps of each."""
SEEDS = 3
EPISODES = 100


@dataclass(frozen=True)
class Run:
    """One run: the score, and seconds of CPU of the training with its evaluations."""

    member: str
    task: str
    seed: int
    mean: float
    updates: int
    seconds: float


def one_run(member: str, task: str, seed: int, overrides: Sequence[str] = ()) -> Run:
    """Trains for the task's env steps. Raises SystemExit on a signal."""
    asked = [
        f"env.id={task}",
        f"run.seed={seed}",
        "run.runtime=serial",
        "evaluation.every_updates=500",
        f"evaluation.episodes={EPISODES}",
        f"stop.env_steps={TASKS[task]}",
        "stop.target_return=1e9",  # none: equal steps for all
    ]
    if member == "rainbow" and task == "LunarLander-v3":
        asked.append("learner.value_range=[-300,300]")  # as the preset says: one that fits the rewards
    config = load_config(PRESETS / f"{member}.yaml", [*asked, *overrides])
    with tempfile.TemporaryDirectory() as folder:
        began = process_time()
        result = quiet_run(config, Path(folder) / "run")
        seconds = process_time() - began
        returns = evaluate_run(result.run_dir, EPISODES, seed).returns
    return Run(
        member, task, seed, round(fmean(returns), 1), result.outcome.final.updates_total, round(seconds, 1)
    )


def table(runs: Sequence[Run]) -> str:
    """A Markdown table, a row for each preset: every seed's score on each task, median of the seconds."""
    rows = [f"| | {' | '.join(TASKS)} |", f"|---{'|---' * len(TASKS)}|"]
    for member in dict.fromkeys(run.member for run in runs):
        cells = []
        for task in TASKS:
            group = [run for run in runs if (run.member, run.task) == (member, task)]
            scores = ", ".join(f"{run.mean:.0f}" for run in sorted(group, key=lambda run: run.mean))
            cells.append(f"{scores} in {median(run.seconds for run in group):.0f} s" if group else "")
        rows.append(f"| `{member}.yaml` | {' | '.join(cells)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family_tasks", description=__doc__)
    parser.add_argument("members", nargs="*", metavar="PRESET", help=f"default: {', '.join(MEMBERS)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 to N - 1; default: %(default)s")
    parser.add_argument("--data", type=Path, default=DATA, help="default: docs/family_tasks.json")
    options = parser.parse_args(arguments)
    runs = read_runs(options.data, Run)
    done = {(run.member, run.task, run.seed) for run in runs}
    for seed in range(options.seeds):
        for member in options.members or MEMBERS:
            for task in TASKS:
                if (member, task, seed) not in done:
                    runs.append(one_run(member, task, seed))
                    write_runs(options.data, runs)
                    print(runs[-1], flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
