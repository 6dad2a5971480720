"""MinAtar's learning curves against the DQN of its paper, at as many frames or fewer.

Run as `python -m benchmarks.minatar [--game Breakout] [--seeds 0 1 2] [--frames 5000000] [--out FILE]`: up to
hours on two cores. A run ends with its frames, or once its greedy return, confirmed on other seeds, is 1.2
times the paper's figure. It can be stopped: run again, it plays only the seeds that --out lacks, and one that
was cut off goes on from its last checkpoint below --runs. The paper's figures are returns while training with
epsilon 0.1, means of 30 runs (Young and Tian 2019, arXiv:1903.03176; the curves are in the README of
kenjyoung/MinAtar), read off at 5 million frames to about half a unit, with all six actions. So training and
greedy returns are both kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.api import train
from cluster.load_config import PRESETS, load_config

DQN_AT_5M_FRAMES = {
    "Asterix": 17.0,
    "Breakout": 10.0,
    "Freeway": 50.0,
    "Seaquest": 20.0,  # before a fix of the game in 1.0.11
    "SpaceInvaders": 44.0,
}
MARGIN = 1.2


def measure(game: str, seed: int, frames: int, run_dir: Path) -> dict[str, Any]:
    """One seed: its curve of (frames, updates, seconds, training return), and its confirmed best version."""
    overrides = [
        f"env.id=MinAtar/{game}-v1",
        f"run.seed={seed}",
        f"stop.env_steps={frames}",
        f"stop.target_return={MARGIN * DQN_AT_5M_FRAMES[game]}",
        "metrics.every_seconds=10",
    ]
    config = load_config(PRESETS / "minatar.yaml", overrides)
    result = train(config, run_dir, resume="auto")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("env_steps_total", "updates_total", "run_seconds", "train_return_mean")
    curve = [[line[name] for name in names] for line in lines if line.get("train_return_mean") is not None]
    scored = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    return {
        "game": game,
        "seed": seed,
        "paper_dqn": DQN_AT_5M_FRAMES[game],
        "frames": result.outcome.final.env_steps_total,
        "seconds": result.outcome.final.run_seconds,
        "train_return": fmean(point[3] for point in curve[-10:]),
        "greedy_return": result.outcome.best_return_mean,
        "curve": curve,
        "evaluations": [[line["version"], line["return_mean"], line["confirms"]] for line in scored],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--game", choices=DQN_AT_5M_FRAMES, default="Breakout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frames", type=int, default=5_000_000)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("minatar.json"))
    options = parser.parse_args()
    found: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    done = {(one["game"], one["seed"]) for one in found}
    for seed in options.seeds:
        if (options.game, seed) in done:
            continue
        run_dir = options.runs / f"minatar-{options.game.lower()}-{seed}"
        found.append(measure(options.game, seed, options.frames, run_dir))
        options.out.write_text(json.dumps(found))
    for one in found:
        beats = "beats" if (one["greedy_return"] or 0.0) > one["paper_dqn"] else "is below"
        print(
            f"{one['game']} seed {one['seed']}: greedy {one['greedy_return']:.1f}, training "
            f"{one['train_return']:.1f} after {one['frames']:,} frames and {one['seconds']:,.0f} s; {beats} "
            f"the paper's DQN ({one['paper_dqn']:g})"
        )


if __name__ == "__main__":
    main()
