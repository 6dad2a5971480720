"""The time that trackers (TensorBoard, W&B offline) add to a run: the whole command with them and without.

Run as `python -m benchmarks.trackers_cost [--pairs 7] [--updates 20000] [--runtime serial]`. Each pair begins
with the other side. Serial runs must end with the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.processor import processor
from cluster.report.charts import bootstrap
from learner.weights import load_weights

TRACKERS = ("metrics.trackers=[tensorboard,wandb]",)


def run_seconds(folder: Path, updates: int, runtime: str, overrides: tuple[str, ...]) -> tuple[float, bytes]:
    """Wall time of a run's command, and the weights that it ends with."""
    settings = (
        f"stop.updates={updates}",
        "stop.target_return=null",
        "evaluation.every_updates=2000",
        *overrides,
    )
    began = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-m", "cluster.main", "train", "CartPole-v1", "--runtime", runtime),
            *(part for setting in settings for part in ("--set", setting)),
            *("--run-dir", str(folder)),
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "WANDB_MODE": "offline"},
    )
    return time.monotonic() - began, load_weights(folder / "weights" / "latest.safetensors")[0].tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--runtime", default="serial", choices=("serial", "local"))
    options = parser.parse_args()
    print(processor(), flush=True)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(options.pairs):
            found = {}
            for side in ("with", "without") if pair % 2 else ("without", "with"):
                overrides = TRACKERS if side == "with" else ()
                run_dir = Path(folder) / f"{side}-{pair}"
                found[side] = run_seconds(run_dir, options.updates, options.runtime, overrides)
            (tracked, weights), (plain, same) = found["with"], found["without"]
            if options.runtime == "serial" and weights != same:
                sys.exit("the weights differ")
            ratios.append(tracked / plain)
            print(f"pair {pair}: {plain:.2f} s, with trackers {tracked:.2f} s", flush=True)
    (low,), (high,) = bootstrap(np.array(ratios).reshape(-1, 1), partial(np.median, axis=-2))
    print(f"median ratio {median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
