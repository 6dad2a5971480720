"""Updates a second of the learner with prioritized replay through Ray, against a bare PyTorch loop with data
in memory, both plain DQN on one thread; and the share of the learner's time spent waiting for data.

Run as `python -m benchmarks.learner_through_ray`. A full shard and a learner have a process each; there are
no actors. The two sides take turns, so that a machine that changes its speed changes both; medians over the
turns are printed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from benchmarks.called_roles import both_engines, served_shard
from benchmarks.processor import processor
from benchmarks.replay_data import ATARI, CARTPOLE, CONFIG
from benchmarks.update_step import ATARI as ATARI_NETWORK
from benchmarks.update_step import CARTPOLE as CARTPOLE_NETWORK
from benchmarks.update_step import BareLoop, Case, Minibatches, updates_per_second
from cluster.engines.engine import Engine, Need
from cluster.runtime.roles import LearnerRole
from learner.choices import choose
from learner.config import LearnerConfig
from learner.core import LearnReport
from replay_service.block import BlockSchema

TURNS = 9
CASES = (
    (Case("MLP 128x128, batch 64", CARTPOLE_NETWORK, LearnerConfig(batch_size=64), 800), CARTPOLE, 100_000),
    (
        Case(
            "MLP 256x256, batch 256",
            CARTPOLE_NETWORK,
            LearnerConfig(hidden_sizes=(256, 256), batch_size=256),
            250,
        ),
        CARTPOLE,
        100_000,
    ),
    (Case("Nature CNN, batch 32", ATARI_NETWORK, LearnerConfig(batch_size=32), 24), ATARI, 10_000),
)
BARS = (1.35, 1.15, 1.5)
MOST_WAITING = 0.05


@dataclass(frozen=True)
class Turn:
    """Updates a second of both sides, one after the other; wait: the share of time the learner waits."""

    bare: float
    ours: float
    wait: float


def turns_of(engine: Engine, case: Case, schema: BlockSchema, capacity: int, folder: Path) -> list[Turn]:
    """A learner and the bare loop in turns. What a learner chooses by trial in a run is chosen here, too."""
    replay = replace(CONFIG, capacity=capacity)
    config, _ = choose(case.config, case.spec)
    made = served_shard(engine, case.spec, config, schema, replay, folder)
    learner = engine.spawn(
        "learner", LearnerRole, made.context, engine.calls, [made.shard], 0, need=Need(torch=True)
    )

    def learn() -> tuple[float, float]:
        """Updates a second and the share of time spent waiting, both by the caller's clock."""
        began = perf_counter()
        report_ref, _ = engine.call(learner, LearnerRole.learn, case.updates, returns=2)
        report: LearnReport = engine.get(report_ref)
        took = perf_counter() - began
        seconds: Mapping[str, float] = report.seconds
        return case.updates / took, seconds["wait"] / took

    bare = BareLoop(case, Minibatches(case).held)
    learn()
    bare.learn(max(case.updates // 10, 2))
    turns = [Turn(updates_per_second(bare, case.updates), *learn()) for _ in range(TURNS)]
    for handle in (learner, made.writer, made.shard):
        engine.kill(handle)
    return turns


def main() -> None:
    print(processor(), flush=True)
    torch.set_num_threads(1)
    print(f"{'prioritized':36s} {'bare/s':>9s} {'learner/s':>9s} {'ratio':>6s} {'bar':>5s} waiting")
    with both_engines() as engines, tempfile.TemporaryDirectory() as folder:
        for (case, schema, capacity), bar in zip(CASES, BARS, strict=True):
            for name, engine in engines.items():
                turns = turns_of(engine, case, schema, capacity, Path(folder))
                bare, ours = median(t.bare for t in turns), median(t.ours for t in turns)
                print(
                    f"{case.name:24s} {name:11s} {bare:9.1f} {ours:9.1f} "
                    f"{median(t.ours / t.bare for t in turns):6.2f} {bar:5.2f} "
                    f"{median(t.wait for t in turns):7.1%} (at most {MOST_WAITING:.0%})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
