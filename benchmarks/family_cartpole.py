"""Each member of the DQN family on CartPole-v1: one shared preset, changed only by the member's switch.

Run as `python -m benchmarks.family_cartpole [MEMBER …]`. Every run is serial: a seed gives the same run
again. The score is the mean greedy return of the delivered version over the 100 fresh episodes that confirmed
it. The bar is 475 on every seed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.processor import processor
from cluster.engines.threads import SINGLE_THREADED

os.environ.update(SINGLE_THREADED)  # read by numpy when it loads, as in a real run

from benchmarks.quiet_run import quiet_run
from cluster.settings.load_config import PRESETS, load_config

SEEDS = (0, 1, 2)
BAR = 475.0
MEMBERS = {
    "dqn": ("learner.double=false",),
    "double": (),
    "huber": ("learner.loss=huber",),
    "dueling": ("learner.dueling=true",),
    "noisy": ("learner.noisy=true",),
    "layer norm": ("learner.layer_norm=true",),
    "prioritized": ("replay.sampling=prioritized",),
    "c51": ("learner.head=c51",),
    "qr": ("learner.head=qr",),
    "iqn": ("learner.head=iqn",),
    "munchausen": ("learner.munchausen=true", "learner.double=false"),
    "adamw": ("learner.optimizer=adamw", "learner.weight_decay=1e-2"),
}


def main(names: list[str]) -> None:
    print(processor(), flush=True)
    print(f"{'member':12s} {'seed':>4s} {'updates':>8s} {'seconds':>8s} {'confirmed mean':>15s}")
    for name in names or list(MEMBERS):
        reached = [_one(name, seed) for seed in SEEDS]
        print(f"{name}: {sum(score >= BAR for score in reached)} of {len(SEEDS)} reach {BAR:g}", flush=True)


def _one(name: str, seed: int) -> float:
    overrides = (*MEMBERS[name], "run.runtime=serial", f"run.seed={seed}")
    config = load_config(PRESETS / "cartpole.yaml", overrides)
    with tempfile.TemporaryDirectory() as folder:
        began = perf_counter()
        outcome = quiet_run(config, Path(folder) / "run").outcome
        seconds = perf_counter() - began
    score = outcome.best_return_mean or 0.0
    print(f"{name:12s} {seed:4d} {outcome.final.updates_total:8d} {seconds:8.1f} {score:15.1f}", flush=True)
    return score


if __name__ == "__main__":
    main(sys.argv[1:])
