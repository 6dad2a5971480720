"""The family's presets against double DQN on three tasks, with the same env steps; and each part of rainbow.

Run as `python -m benchmarks.family_tasks [MEMBER …] [--parts]`: serial runs, some six minutes of a core for a
seed of the four members. It can be stopped: runs that the file holds are not repeated. The score is the mean
greedy return of the weights delivered, over 100 fresh episodes. `--parts` adds to double DQN each part of
rainbow alone, or Huber's loss, and leaves each part out of rainbow.

All members have the sizes of `configs/rainbow.yaml` or of their preset and see normalized observations; a
member is the same on every task, but for the range of c51's atoms.
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

import numpy as np

from benchmarks.quiet_run import quiet_run
from benchmarks.recorded_runs import read_runs, write_runs
from cluster.policies.evaluate import evaluate_run
from cluster.report.charts import bootstrap
from cluster.settings.load_config import PRESETS, load_config

DATA = PRESETS.parent / "docs" / "family_tasks.json"
EPISODES = 100
BASE = "double"


@dataclass(frozen=True)
class Task:
    """Env steps of a run, its seeds 0 to `seeds` - 1, updates between evaluations, and the range of returns.

    The range is from what random actions reach, or the least possible, to the best.
    """

    env_steps: int
    seeds: int
    evaluation_every_updates: int
    returns: tuple[float, float]


TASKS: Mapping[str, Task] = {
    "CartPole-v1": Task(100_000, 10, 500, (0.0, 500.0)),
    "Acrobot-v1": Task(150_000, 5, 1_000, (-500.0, 0.0)),
    "LunarLander-v3": Task(300_000, 5, 2_000, (-200.0, 300.0)),
}

# Rainbow's parts beside double Q-learning: the settings that switch each one on, and off.
PARTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dueling": (("learner.dueling=true",), ("learner.dueling=false",)),
    "noisy": (
        (
            "learner.noisy=true",
            "actors.epsilon_ladder.base=0.4",
            "actors.epsilon_ladder.alpha=7.0",
            "actors.epsilon_decay_env_steps=null",
        ),
        (
            "learner.noisy=false",
            "actors.epsilon_ladder=null",
            "actors.epsilon_start=1.0",
            "actors.epsilon_end=0.05",
            "actors.epsilon_decay_env_steps=50000",
        ),
    ),
    "c51": (("learner.head=c51",), ("learner.head=q",)),
    "three steps": (("actors.n_step=3",), ("actors.n_step=1",)),
    "prioritized": (("replay.sampling=prioritized",), ("replay.sampling=uniform",)),
}
_NO_PART = tuple(setting for _, off in PARTS.values() for setting in off)
MEMBERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    BASE: ("rainbow", _NO_PART),
    "rainbow": ("rainbow", ()),
    "apex": ("apex", ()),
    "modern": ("modern", ()),
}
"""Name -> preset and what is changed in it."""
STUDY: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **{f"double + {part}": ("rainbow", (*_NO_PART, *on)) for part, (on, _) in PARTS.items()},
    "double + Huber": ("rainbow", (*_NO_PART, "learner.loss=huber")),
    **{f"rainbow - {part}": ("rainbow", off) for part, (_, off) in PARTS.items()},
    "rainbow - double": ("rainbow", ("learner.double=false",)),
}


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
    preset, changes = {**MEMBERS, **STUDY}[member]
    asked = [
        f"env.id={task}",
        f"run.seed={seed}",
        "run.runtime=serial",
        f"evaluation.every_updates={TASKS[task].evaluation_every_updates}",
        "evaluation.episodes=50",
        f"stop.env_steps={TASKS[task].env_steps}",
        "stop.target_return=1e9",  # none: equal steps for all
    ]
    if task == "LunarLander-v3":
        asked.append("learner.value_range=[-300,300]")  # as rainbow.yaml says: one that fits the rewards
    config = load_config(PRESETS / f"{preset}.yaml", [*changes, *asked, *overrides])
    with tempfile.TemporaryDirectory() as folder:
        began = process_time()
        result = quiet_run(config, Path(folder) / "run")
        seconds = process_time() - began
        returns = evaluate_run(result.run_dir, EPISODES, seed).returns
    return Run(
        member, task, seed, round(fmean(returns), 1), result.outcome.final.updates_total, round(seconds, 1)
    )


def table(runs: Sequence[Run]) -> str:
    """A Markdown table, a row for each member, of mean scores and seconds.

    In brackets: the mean difference to double DQN of the same seed with its 95 % bootstrap interval, both in
    percent of the task's range of returns.
    """
    rows = [f"| | {' | '.join(TASKS)} |", f"|---{'|---' * len(TASKS)}|"]
    scores = {(run.member, run.task, run.seed): run.mean for run in runs}
    for member in dict.fromkeys(run.member for run in runs):
        cells = []
        for task in TASKS:
            group = [run for run in runs if (run.member, run.task) == (member, task)]
            if not group:
                cells.append("")
                continue
            cell = f"{fmean(run.mean for run in group):.0f} in {median(run.seconds for run in group):.0f} s"
            pairs = [
                (run.mean, scores[BASE, task, run.seed]) for run in group if (BASE, task, run.seed) in scores
            ]
            cells.append(cell if member == BASE or not pairs else f"{cell} ({_difference(pairs, task)})")
        rows.append(f"| {member} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _difference(pairs: Sequence[tuple[float, float]], task: str) -> str:
    least, most = TASKS[task].returns
    differences = np.array([[(score - base) / (most - least)] for score, base in pairs])
    ((low,), (high,)) = bootstrap(differences, lambda drawn: drawn.mean(axis=-2))
    return f"{differences.mean():+.1%}, {low:+.1%} to {high:+.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family_tasks", description=__doc__)
    parser.add_argument("members", nargs="*", metavar="MEMBER", help=f"default: {', '.join(MEMBERS)}")
    parser.add_argument(
        "--parts", action="store_true", help="rainbow's parts alone and left out, 3 seeds each"
    )
    parser.add_argument("--seeds", type=int, default=10, help="at most so many; default: %(default)s")
    parser.add_argument("--data", type=Path, default=DATA, help="default: docs/family_tasks.json")
    options = parser.parse_args(arguments)
    runs = read_runs(options.data, Run)
    done = {(run.member, run.task, run.seed) for run in runs}
    members = options.members or list(STUDY if options.parts else MEMBERS)
    for seed in range(min(options.seeds, 3) if options.parts else options.seeds):
        for member in members:
            for task in TASKS:
                if seed < TASKS[task].seeds and (member, task, seed) not in done:
                    runs.append(one_run(member, task, seed))
                    write_runs(options.data, runs)
                    print(runs[-1], flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
