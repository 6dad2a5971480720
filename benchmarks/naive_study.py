"""The naive neural fit of Q on CartPole-v1 and its cures, over ten seeds: how many runs diverge or collapse,
how far Q lies above the truth, and the final greedy return. docs/from-q-learning-to-dqn.md reads the result.

Run as `python -m benchmarks.naive_study [--seeds N] [--data FILE] [--plot-only]`. Runs are serial: a seed
gives the same weights again. Those that the file holds are not repeated. The plot beside the file (needs
matplotlib) is made anew each time, and with the default file so is the table in the lesson.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.quiet_run import quiet_run
from benchmarks.recorded_runs import between, json_lines, read_runs, write_runs
from cluster.record.run_dir import read_config, read_spec
from cluster.runtime.failure import RunFailed
from cluster.runtime.roles import make_policy
from cluster.settings.load_config import PRESETS, load_config
from learner.weights import load_weights

DOCS = PRESETS.parent / "docs"
DATA = DOCS / "naive_study.json"
LESSON = DOCS / "from-q-learning-to-dqn.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- naive-study -->", "<!-- end of naive-study -->"
SEEDS = 10
GREATEST_VALUE = 100.0
"""The bound 1 / (1 - 0.99) of every policy's discounted return: rewards are 1, the discount is 0.99."""

DIVERGED_ABOVE = 2.0 * GREATEST_VALUE
COLLAPSED_BELOW = 0.5
"""Share of the best greedy return of the run's own evaluations."""

REPLAY = "replay.capacity=20_000"
FROZEN = "learner.target_update_updates=100"
CLIPPING = "learner.max_grad_norm=10"
DOUBLE = "learner.double=true"
ALL_FOUR = (REPLAY, FROZEN, CLIPPING, DOUBLE)
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "naive": (),
    "only replay": (REPLAY,),
    "only a frozen copy": (FROZEN,),
    "only clipping": (CLIPPING,),
    "replay, frozen copy": (REPLAY, FROZEN),
    "replay, frozen copy, clipping": (REPLAY, FROZEN, CLIPPING),
    "all four": ALL_FOUR,
    "all four, bootstrap at ends": (*ALL_FOUR, "env.id=benchmarks.naive_study:cartpole_that_never_ends"),
    "all four, ten-step returns": (*ALL_FOUR, "actors.n_step=10"),
}


class NeverEnds(gym.Wrapper[Any, Any, Any, Any]):
    """Reports each end as a truncation, so that discounts are kept: the target lacks its factor 1 - done."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step; terminated is never true."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, False, terminated or truncated, info


def cartpole_that_never_ends() -> gym.Env[Any, Any]:
    """CartPole-v1 for learners that bootstrap at its ends. Episodes and returns are those of CartPole-v1."""
    return NeverEnds(gym.make("CartPole-v1"))


@dataclass(frozen=True)
class Run:
    """The results of one run.

    Attributes:
        greatest_q: the highest mean Q-value of a chunk's minibatches in metrics.jsonl; infinite where updates
            that were not finite ended the run.
        start_q, start_return: over the first states of 20 greedy episodes of the final weights, the mean of
            max Q and of the discounted return that followed. Their difference is the overestimation.
        best, final: mean greedy returns of 20 episodes, the highest and the last of the run.
    """

    variant: str
    seed: int
    seconds: float
    updates: int
    greatest_q: float
    start_q: float
    start_return: float
    best: float
    final: float
    evaluations: tuple[tuple[int, float], ...]

    @property
    def diverged(self) -> bool:
        """Whether Q exceeded twice what any policy can earn."""
        return not self.greatest_q <= DIVERGED_ABOVE

    @property
    def collapsed(self) -> bool:
        """Whether the final policy earns less than half of what the run's best did."""
        return self.final < COLLAPSED_BELOW * self.best


def one_run(variant: str, seed: int, overrides: Sequence[str] = ()) -> Run:
    """Trains one variant in this process."""
    settings = (*VARIANTS[variant], "run.runtime=serial", f"run.seed={seed}", "metrics.every_seconds=0.1")
    config = load_config(PRESETS / "cartpole_naive.yaml", (*settings, *overrides))
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        began = perf_counter()
        blew_up = False
        try:
            quiet_run(config, run_dir)
        except RunFailed as failure:
            if "learning diverged" not in str(failure):
                raise
            blew_up = True
        seconds = perf_counter() - began
        metrics, evaluations = (
            json_lines(run_dir / "metrics.jsonl"),
            json_lines(run_dir / "evaluations.jsonl"),
        )
        start_q, start_return = start_values(run_dir)
    first = [(line["version"], line["return_mean"]) for line in evaluations if not line["confirms"]]
    seen = [line["q_mean"] for line in metrics if line.get("q_mean") is not None]
    return Run(
        variant=variant,
        seed=seed,
        seconds=round(seconds, 1),
        updates=metrics[-1]["updates_total"],
        greatest_q=math.inf if blew_up else round(max(seen), 2),
        start_q=round(start_q, 2),
        start_return=round(start_return, 2),
        best=max(mean for _, mean in first),
        final=first[-1][1],
        evaluations=tuple(first),
    )


def start_values(run_dir: Path, episodes: int = 20, discount: float = 0.99) -> tuple[float, float]:
    """Means over the first states of the final weights' greedy episodes: max Q and discounted return."""
    config, spec = read_config(run_dir), read_spec(run_dir)
    policy = make_policy(config, spec)
    policy.load(load_weights(run_dir / "weights" / "latest.safetensors")[0])
    promised, earned = [], []
    env = gym.make("CartPole-v1")
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        promised.append(float(policy.q_values(observation[None]).max()))
        rewards, over = [], False
        while not over:
            action = int(policy.q_values(observation[None]).argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards.append(float(reward))
            over = terminated or truncated
        earned.append(sum(discount**step * reward for step, reward in enumerate(rewards)))
    env.close()
    return fmean(promised), fmean(earned)


def wilson_interval(count: int, of: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953, equation 4)."""
    z = 1.959964
    share, spread = count / of, z * z / of
    middle = share + spread / 2
    half = z * math.sqrt((share * (1 - share) + spread / 4) / of)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def bootstrap_interval(values: Sequence[float], resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979, doi:10.1214/aos/1176344552), by fixed draws."""
    array = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).integers(0, len(array), (resamples, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def table(runs: Sequence[Run]) -> str:
    """A Markdown table with a row for each variant, in the order of VARIANTS, with 95 % intervals."""
    rows = [
        "| | runs | diverged | collapsed | max Q less return, at the start | final return |",
        "|---|---|---|---|---|---|",
    ]
    for variant, group in grouped(runs).items():
        over = [run.start_q - run.start_return for run in group]
        final = [run.final for run in group]
        cells = (
            variant,
            str(len(group)),
            _share(sum(run.diverged for run in group), len(group)),
            _share(sum(run.collapsed for run in group), len(group)),
            f"{fmean(over):+.0f} ({_span(*bootstrap_interval(over))})",
            f"{fmean(final):.0f} ({_span(*bootstrap_interval(final))})",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Greedy returns over updates, a panel a variant: each run thin, the mean of all thick."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "qfleet"  # the same data give the same file
    from matplotlib import pyplot

    groups = grouped(runs)
    columns = 3
    figure, axes = pyplot.subplots(
        -(-len(groups) // columns), columns, sharex=True, sharey=True, squeeze=False, figsize=(9.0, 6.6)
    )
    for panel in axes.flat[len(groups) :]:
        panel.set_axis_off()
    for panel, (variant, group) in zip(axes.flat, groups.items(), strict=False):
        for run in group:
            panel.plot(*zip(*run.evaluations, strict=True), color="#4477aa", alpha=0.35, linewidth=0.8)
        shortest = min((run.evaluations for run in group), key=len)
        means = [fmean(run.evaluations[k][1] for run in group) for k in range(len(shortest))]
        panel.plot([version for version, _ in shortest], means, color="#aa3377", linewidth=2.0)
        failed = f"{sum(r.diverged for r in group)} diverged, {sum(r.collapsed for r in group)} collapsed"
        panel.set_title(f"{variant}\n{failed} of {len(group)}", fontsize=8)
    figure.supxlabel("updates", fontsize=9)
    figure.supylabel("greedy return, mean of 20 episodes", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by variant, in the order of VARIANTS; variants without a run are left out."""
    found = {variant: [run for run in runs if run.variant == variant] for variant in VARIANTS}
    return {variant: group for variant, group in found.items() if group}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive_study", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 to N - 1; default: %(default)s")
    parser.add_argument("--data", type=Path, default=DATA, help="default: docs/naive_study.json")
    parser.add_argument("--plot-only", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    runs = read_runs(options.data, Run)
    done = {(run.variant, run.seed) for run in runs}
    wanted = [(variant, seed) for seed in range(options.seeds) for variant in VARIANTS]
    for variant, seed in () if options.plot_only else wanted:
        if (variant, seed) in done:
            continue
        run = one_run(variant, seed)
        runs.append(run)
        write_runs(options.data, runs)
        print(f"{variant:32s} seed {seed} {run.seconds:6.1f} s, final return {run.final:.0f}", flush=True)
    print(table(runs))
    plot(runs, options.data.with_suffix(".svg"))
    if options.data == DATA:
        LESSON.write_text(
            between(LESSON.read_text(encoding="utf-8"), TABLE_BEGINS, TABLE_ENDS, table(runs)),
            encoding="utf-8",
        )


def _share(count: int, of: int) -> str:
    return f"{count} ({_span(*(100 * bound for bound in wilson_interval(count, of)))} %)"


def _span(low: float, high: float) -> str:
    return f"{low:.0f} to {high:.0f}"


if __name__ == "__main__":
    main()
