"""Updates a second of the learner in the local runtime, beside its actors, shard and evaluator, against a
bare PyTorch loop with the same network, batch size and optimizer, and data in memory.

Run as `python -m benchmarks.local_learner`. The bare loop runs alone, before and after each training run; the
ratio is to the mean of the two, so that a machine that changes its speed changes both sides.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import fmean, median

import torch

from benchmarks.processor import processor
from benchmarks.recorded_runs import json_lines
from benchmarks.update_step import CARTPOLE, BareLoop, Case, Minibatches, updates_per_second
from cluster.api import train
from cluster.settings.config import RunConfig
from cluster.settings.load_config import PRESETS, load_config
from cluster.show.view import LineView

RUNS = 3
SECONDS = 20.0
BARE_UPDATES = 1_500


def steady_updates_per_second(config: RunConfig) -> float:
    """Rate between the second metrics line with updates and the last regular one, without start and end."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        train(config, run_dir, view=partial(LineView, stream=StringIO()))
        lines = json_lines(run_dir / "metrics.jsonl")
    learning = [line for line in lines if line["updates_total"] > 0][1:-1]
    first, last = learning[0], learning[-1]
    seconds: float = last["run_seconds"] - first["run_seconds"]
    return float(last["updates_total"] - first["updates_total"]) / seconds


def bare_updates_per_second(config: RunConfig) -> float:
    case = Case("", CARTPOLE, config.learner, BARE_UPDATES)
    loop = BareLoop(case, Minibatches(case).held)
    loop.learn(200)
    return updates_per_second(loop, BARE_UPDATES)


def main() -> None:
    print(processor(), flush=True)
    torch.set_num_threads(1)
    print(f"{'local runtime':34s} {'bare/s':>9s} {'learner/s':>9s} {'ratio':>6s}   (medians of {RUNS} runs)")
    for name, batch_size, sampling in (
        ("MLP 128x128, batch 64, uniform", 64, "uniform"),
        ("MLP 128x128, batch 64, prioritized", 64, "prioritized"),
        ("MLP 128x128, batch 128, uniform", 128, "uniform"),
    ):
        config = load_config(
            PRESETS / "cartpole.yaml",
            [
                f"learner.batch_size={batch_size}",
                "learner.double=false",
                f"replay.sampling={sampling}",
                "stop.target_return=501",
                f"stop.seconds={SECONDS}",
                "stop.env_steps=100_000_000",
                "metrics.every_seconds=1",
            ],
        )
        config = replace(config, learner=replace(config.learner, network="mlp"))
        ratios, rates = [], []
        for _ in range(RUNS):
            before = bare_updates_per_second(config)
            ours = steady_updates_per_second(config)
            bare = fmean((before, bare_updates_per_second(config)))
            ratios.append(ours / bare)
            rates.append((bare, ours))
        bare, ours = (median(side) for side in zip(*rates, strict=True))
        print(f"{name:34s} {bare:9.1f} {ours:9.1f} {median(ratios):6.2f}", flush=True)


if __name__ == "__main__":
    main()
