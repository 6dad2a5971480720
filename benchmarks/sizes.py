"""Sizes that suit calls through Ray, tried again through each engine: requests, chunks and credits.

Run as `python -m benchmarks.sizes [requests|runs] [--engine processes|Ray] [--turns N]`. `requests`: updates
a second of a learner that asks for 4, 16 or 64 minibatches at once. `runs`: updates a second of a whole
CartPole run at a fixed number of samples per insert, and how old the weights of its actors are. All values
take turns; each number is a median. What windows cost by slot and by reply: `benchmarks.replay_through_ray`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest.mock import patch

import torch

from benchmarks.called_roles import both_engines, served_shard
from benchmarks.learner_through_ray import CASES
from benchmarks.processor import processor
from benchmarks.recorded_runs import json_lines
from benchmarks.replay_data import CONFIG
from benchmarks.update_step import Case
from cluster.api import train
from cluster.engines.engine import Engine, Need
from cluster.runtime import credits
from cluster.runtime.roles import LearnerRole
from cluster.settings.load_config import PRESETS, load_config
from cluster.show.view import LineView
from replay_service.block import BlockSchema

MINIBATCHES = (4, 16, 64)
CREDITS = "credits"
SIZES: Sequence[tuple[str, int]] = (
    (CREDITS, 2),
    (CREDITS, 1),
    (CREDITS, 3),
    ("actors.steps_per_chunk", 8),
    ("actors.steps_per_chunk", 128),
    ("learner.updates_per_chunk", 16),
    ("learner.updates_per_chunk", 256),
    ("actors.pushes_in_flight", 1),
    ("actors.pushes_in_flight", 4),
)
"""What a run is tried with; the first one is what runs have."""
SECONDS = 8.0


def in_turns(sides: Mapping[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """The median of what each side returns over turns, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            rate = side()
            if turn:
                found[name].append(rate)
    return {name: median(values) for name, values in found.items()}


def learners(
    engine: Engine, case: Case, schema: BlockSchema, capacity: int, folder: Path
) -> dict[str, Callable[[], float]]:
    """A learner for each number of minibatches, all at one full shard: what measures its updates a second."""
    replay = replace(CONFIG, capacity=capacity)
    made = served_shard(engine, case.spec, case.config, schema, replay, folder)

    def side(minibatches: int) -> Callable[[], float]:
        asks = replace(made.context.config.replay, minibatches_per_request=minibatches)
        own = replace(made.context, config=replace(made.context.config, replay=asks))
        learner = engine.spawn(
            "learner", LearnerRole, own, engine.calls, [made.shard], 0, need=Need(torch=True)
        )

        def updates_per_second() -> float:
            began = perf_counter()
            engine.get(engine.call(learner, LearnerRole.learn, case.updates, returns=2)[0])
            return case.updates / (perf_counter() - began)

        return updates_per_second

    return {f"{number} minibatches": side(number) for number in MINIBATCHES}


def print_requests(turns: int, wanted: Sequence[str]) -> None:
    """Prints updates a second by the most minibatches that a request asks for."""
    with both_engines() as engines, tempfile.TemporaryDirectory() as folder:
        for case, schema, capacity in CASES:
            for name in wanted:
                found = in_turns(learners(engines[name], case, schema, capacity, Path(folder)), turns)
                chosen = found[f"{MINIBATCHES[-1]} minibatches"]
                for side, rate in found.items():
                    print(
                        f"{case.name:24s} {name:10s} {side:16s} {rate:9.1f} {rate / chosen:6.2f}", flush=True
                    )


def run_of(name: str, value: int, runtime: str, lags: list[float]) -> float:
    """Updates a second of a run between its second line of metrics and its last; appends the actors' lag."""
    config = load_config(
        PRESETS / "cartpole.yaml",
        [
            f"run.runtime={runtime}",
            "stop.target_return=501",
            f"stop.seconds={SECONDS}",
            "stop.env_steps=100_000_000",
            "metrics.every_seconds=0.5",
            *([] if name == CREDITS else [f"{name}={value}"]),
        ],
    )
    each = value if name == CREDITS else SIZES[0][1]
    with tempfile.TemporaryDirectory() as folder, patch.object(credits, "_CREDITS_EACH", each):
        run_dir = Path(folder) / "run"
        train(config, run_dir, view=partial(LineView, stream=StringIO()))
        lines = [line for line in json_lines(run_dir / "metrics.jsonl") if line["updates_total"] > 0][1:-1]
    lags.append(median(line["policy_lag_updates"] for line in lines))
    first, last = lines[0], lines[-1]
    seconds: float = last["run_seconds"] - first["run_seconds"]
    return float(last["updates_total"] - first["updates_total"]) / seconds


def print_runs(turns: int, wanted: Sequence[str]) -> None:
    """Prints updates a second of whole runs, relative to those with the sizes that runs have."""
    for engine in wanted:
        lags: dict[str, list[float]] = {f"{name} {value}": [] for name, value in SIZES}
        runtime = {"processes": "local", "Ray": "ray"}[engine]
        found = in_turns(
            {
                side: partial(run_of, *size, runtime, lags[side])
                for side, size in zip(lags, SIZES, strict=True)
            },
            turns,
        )
        chosen = next(iter(found.values()))
        for side, rate in found.items():
            lag = median(lags[side])
            print(
                f"{engine:10s} {side:30s} {rate:9.1f} {rate / chosen:6.2f}   lag {lag:6.1f} updates",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("requests", "runs"), help="default: both")
    parser.add_argument("--engine", choices=("processes", "Ray"), help="default: both")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    wanted = [options.engine] if options.engine else ["processes", "Ray"]
    print(processor(), flush=True)
    torch.set_num_threads(1)
    for name, printing in (("requests", print_requests), ("runs", print_runs)):
        if options.what in (None, name):
            printing(options.turns, wanted)


if __name__ == "__main__":
    main()
