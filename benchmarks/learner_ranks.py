"""Updates a second of one and of two ranks of the learner, with prioritized replay through its service.

Run as `python -m benchmarks.learner_ranks`. A full shard and each rank have a process; there are no actors.
Two ranks of one thread each, one rank of two threads, and one rank of one thread take turns, so that a
machine that changes its speed changes all; medians of the ratios to the last are printed, and the share of
time that ranks spend on averaging and waiting for each other. It wants two cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.called_roles import ServedShard, served_shard
from benchmarks.replay_data import ATARI, CONFIG
from benchmarks.update_step import ATARI as ATARI_NETWORK
from cluster.engines.engine import Engine, Handle, Need
from cluster.engines.placement import role_name
from cluster.engines.process_engine import ProcessEngine
from cluster.runtime.preload import fork_servers
from cluster.runtime.roles import LearnerRole
from learner.config import LearnerConfig, NetworkSpec
from learner.core import LearnReport
from replay_service.block import BlockSchema, FrameField

TURNS = 5
MINATAR = BlockSchema((FrameField("observation", "|b1", (10, 10, 4)),), stack=1, n_step=1)
MINATAR_NETWORK = NetworkSpec((10, 10, 4), "|b1", None, 6, stack=1, image_layouts={"observation": "HWC"})


@dataclass(frozen=True)
class Case:
    """A network and a batch size. updates: of one turn; bar: the ratio that two ranks should reach."""

    name: str
    spec: NetworkSpec
    schema: BlockSchema
    config: LearnerConfig
    updates: int
    bar: float


CASES = (
    Case("Nature CNN, batch 256", ATARI_NETWORK, ATARI, LearnerConfig(batch_size=256), 8, 1.5),
    Case("Nature CNN, batch 64", ATARI_NETWORK, ATARI, LearnerConfig(batch_size=64), 24, 1.2),
    Case("MinAtar CNN, batch 512", MINATAR_NETWORK, MINATAR,
         LearnerConfig(network="minatar_cnn", batch_size=512), 60, 1.0),
    Case("MinAtar CNN, batch 128", MINATAR_NETWORK, MINATAR,
         LearnerConfig(network="minatar_cnn", batch_size=128), 200, 0.0),
)  # fmt: skip


class Side:
    """A learner of so many ranks and threads a rank, in processes of its own."""

    def __init__(
        self,
        engine: Engine,
        made: ServedShard,
        *,
        ranks: int,
        threads: int,
    ) -> None:
        self._engine = engine
        context = made.context
        learner = replace(context.config.learner, num_learners=ranks, threads=threads)
        config = replace(context.config, learner=learner)
        self.handles = [
            engine.spawn(
                role_name("learner", rank), LearnerRole,
                replace(context, config=config, name=role_name("learner", rank)),
                engine.calls, [made.shard], 0, rank, need=Need(torch=True),
            )
            for rank in range(ranks)
        ]  # fmt: skip
        if ranks > 1:
            meeting = engine.get(engine.call(self.handles[0], LearnerRole.open_meeting)[0])
            for met in [engine.call(each, LearnerRole.meet, meeting)[0] for each in self.handles]:
                engine.get(met)

    def learn(self, updates: int) -> tuple[float, float]:
        """Updates a second, and the share of the time spent on exchanges."""
        began = perf_counter()
        calls = [self._engine.call(each, LearnerRole.learn, updates, returns=2)[0] for each in self.handles]
        reports: Sequence[LearnReport] = [self._engine.get(call) for call in calls]
        took = perf_counter() - began
        return reports[0].updates / took, reports[0].seconds.get("exchange", 0.0) / took


def measure(engine: Engine, case: Case, folder: Path) -> str:
    """A line of the table."""
    replay = replace(CONFIG, capacity=10_000)
    made = served_shard(engine, case.spec, case.config, case.schema, replay, folder)
    two = Side(engine, made, ranks=2, threads=1)
    threads = Side(engine, made, ranks=1, threads=2)
    one = Side(engine, made, ranks=1, threads=1)
    for side in (two, threads, one):
        side.learn(max(2, case.updates // 4))
    turns = [[side.learn(case.updates) for side in (two, threads, one)] for _ in range(TURNS)]
    handles: list[Handle[Any]] = [*two.handles, *threads.handles, *one.handles, made.writer, made.shard]
    for handle in handles:
        engine.kill(handle)
    alone = median(each[2][0] for each in turns)
    ratios = [median(each[side][0] / each[2][0] for each in turns) for side in (0, 1)]
    exchange = median(each[0][1] for each in turns)
    return f"{case.name:24s} {alone:10.1f} {ratios[0]:9.2f} {case.bar:5.2f} {exchange:9.0%} {ratios[1]:12.2f}"


def main() -> None:
    print(f"{'':24s} {'one rank/s':>10s} {'two ranks':>9s} {'bar':>5s} {'exchange':>9s} {'two threads':>12s}")
    with closing(ProcessEngine(fork_servers())) as engine, tempfile.TemporaryDirectory() as folder:
        engine.start()
        for case in CASES:
            print(measure(engine, case, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
