"""The defaults: `qfleet train ENV` and nothing else, beside an untuned DQN of Stable-Baselines3.

Run as `python -m benchmarks.defaults [TASK …] [--seeds 0 1 2] [--seconds S] [--side qfleet|sb3] [--data
FILE]`, S seconds for each run. docs/defaults.json holds the runs of both sides. Runs that it holds are not
repeated, so a stopped study goes on where it was, and Stable-Baselines3 is measured once. Each call writes
the table in docs/benchmarks.md anew; `--table` does nothing else. The score is the mean greedy return of the
weights delivered over fresh episodes. Some tasks need packages, `pip install minigrid highway-env
flappy-bird-gymnasium bsuite shimmy`, and the other side needs stable-baselines3.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from benchmarks.default_tasks import SCORE_SEED, TASKS, Task, make_env, mean_return
from benchmarks.processor import processor
from benchmarks.recorded_runs import between, json_lines, read_runs, write_runs
from cluster.policies.saved_policy import load_policy
from cluster.record.run_dir import read_spec
from cluster.settings.load_config import PRESETS
from replay_service.block import ACTION_MASK

DATA = PRESETS.parent / "docs" / "defaults.json"
PAGE = PRESETS.parent / "docs" / "benchmarks.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- defaults begins -->", "<!-- defaults ends -->"
SEEDS = (0, 1, 2)
SECONDS = 90.0
_STOPPED = 128 + signal.SIGTERM
# A run that was asked to stop saves and ends within seconds.
_END_SECONDS = 60.0

Side = Literal["qfleet", "sb3"]


@dataclass(frozen=True)
class Run:
    """One run. seconds: of wall time, at most. mean: the score. good_seconds: from the first env step until
    an evaluation had confirmed the optimum; None if none did, and for the other side."""

    task: str
    side: Side
    seed: int
    seconds: float
    env_steps: int
    mean: float
    good_seconds: float | None = None


def one_run(task: str, side: Side, seed: int, seconds: float) -> Run:
    """Trains in a process of its own, and plays. Raises CalledProcessError where it fails."""
    return (_own if side == "qfleet" else _peer)(task, seed, seconds)


def _own(task: str, seed: int, seconds: float) -> Run:
    """A run of the command; a signal ends it when the time is up, as its user would."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "cluster.main", "train", TASKS[task].env_id]
        command += ["--run-dir", str(run_dir), "--seed", str(seed)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                status = process.wait(_END_SECONDS)
        if status not in (0, _STOPPED):
            raise subprocess.CalledProcessError(status, command)
        policy, masked = load_policy(run_dir), read_spec(run_dir).action_mask

        def act(observation: Any, info: dict[str, Any]) -> Any:
            return policy(observation, info[ACTION_MASK] if masked else None)

        mean = mean_return(make_env(TASKS[task]), act, policy.reset, TASKS[task].episodes, SCORE_SEED)
        lines = json_lines(run_dir / "metrics.jsonl")
        env_steps = lines[-1]["env_steps_total"]
        return Run(
            task, "qfleet", seed, seconds, env_steps, round(mean, 3), _good_seconds(TASKS[task], lines)
        )


def _good_seconds(task: Task, lines: Sequence[dict[str, Any]]) -> float | None:
    """When the best confirmed mean return was first good, by a run's lines of metrics."""
    if task.good is None:
        return None
    scores = ((line["run_seconds"], line.get("best_return_mean")) for line in lines)
    return next((round(at, 1) for at, score in scores if score is not None and score >= task.good), None)


def _peer(task: str, seed: int, seconds: float) -> Run:
    command = [sys.executable, "-m", "benchmarks.default_peer", task, str(seed), str(seconds)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    env_steps, mean = said.splitlines()[-1].split()
    return Run(task, "sb3", seed, seconds, int(env_steps), round(float(mean), 3))


def verdict(task: Task, own: Sequence[float], peer: Sequence[float]) -> str:
    """ "optimum" where the mean is there; else "better" or "worse" if each seed of a side is above the other
    side's, which chance alone does in one of twenty cases with three seeds each; else "alike"."""
    if task.good is not None and fmean(own) >= task.good:
        return "optimum"
    if not peer:
        return ""
    if min(own) > max(peer):
        return "better"
    return "worse" if max(own) < min(peer) else "alike"


def table(runs: Sequence[Run]) -> str:
    """A Markdown table, a line for each task and time: scores of the seeds of both sides, worst first."""
    lines = [
        "| task | seconds | qfleet | Stable-Baselines3 | optimum from | reached after | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        for seconds in sorted({run.seconds for run in runs if run.task == name}):
            own, peer = (
                sorted(run.mean for run in runs if (run.task, run.side, run.seconds) == (name, side, seconds))
                for side in ("qfleet", "sb3")
            )
            if own:
                good = "" if task.good is None else f"{task.good:g}"
                when = [run.good_seconds for run in runs if (run.task, run.seconds) == (name, seconds)]
                reached = ", ".join(f"{at:.0f} s" for at in sorted(at for at in when if at is not None))
                scores = (_scores(own), _scores(peer))
                cells = (name, f"{seconds:g}", *scores, good, reached, verdict(task, own, peer))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(means: Sequence[float]) -> str:
    return ", ".join(f"{mean:.4g}" for mean in means)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"default: all of {json.dumps(list(TASKS))}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a run; default: %(default)g")
    parser.add_argument("--side", choices=("qfleet", "sb3"), help="default: both")
    parser.add_argument("--data", type=Path, default=DATA, help="default: docs/defaults.json")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.tasks) - set(TASKS)):
        parser.error(f"no task {', '.join(unknown)}; there are: {', '.join(TASKS)}")
    runs = read_runs(options.data, Run)
    done = {(run.task, run.side, run.seed, run.seconds) for run in runs}
    sides: Sequence[Side] = (options.side,) if options.side else ("qfleet", "sb3")
    if not options.table:
        print(processor(), flush=True)
    for seed in () if options.table else options.seeds:
        for name in options.tasks or TASKS:
            for side in sides:
                if (name, side, seed, options.seconds) not in done:
                    runs.append(one_run(name, side, seed, options.seconds))
                    write_runs(options.data, runs)
                    print(runs[-1], flush=True)
    print(table(runs))
    if options.data == DATA:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(between(page, TABLE_BEGINS, TABLE_ENDS, table(runs)), encoding="utf-8")


if __name__ == "__main__":
    main()
