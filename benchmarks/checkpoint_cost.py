"""The cost of a checkpoint: its bytes and seconds by the number of new transitions, and the learner's speed.

Shard and learner (Nature network, prioritized, batch 32) have a process each, as in a run. Run as
`python -m benchmarks.checkpoint_cost --transitions 1000000`, which needs about 8 GB of memory and of disk.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.called_roles import Writer, served_shard
from benchmarks.processor import processor
from benchmarks.replay_data import ATARI, CONFIG
from benchmarks.update_step import ATARI as ATARI_NETWORK
from cluster.checkpoints.checkpoint import CheckpointStore, RunState, SavedCheckpoint, shard_folder
from cluster.control.evaluation import ModelSelectionState
from cluster.engines.engine import Need, Ref
from cluster.engines.ray_engine import RayEngine
from cluster.metrics.counters import CountersState
from cluster.runtime.roles import LearnerRole
from cluster.runtime.shard_role import ShardRole
from learner.config import LearnerConfig
from learner.core import LearnerState, LearnReport
from replay_service.journal.durability import SealReply

UPDATES_PER_CHUNK = 8
NO_RUN = RunState(0.0, {}, CountersState(), ModelSelectionState(), "")


@dataclass(frozen=True)
class Cost:
    """A checkpoint taken while the learner went on: seconds, longest slice, updates per second meanwhile."""

    committed: SavedCheckpoint
    seconds: float
    longest_slice_milliseconds: float
    updates_per_second: float


class Bench:
    """One shard, its writer and a learner, without a coordinator."""

    def __init__(self, engine: RayEngine, capacity: int, folder: Path) -> None:
        self._engine = engine
        replay = replace(CONFIG, capacity=capacity, persist="checkpoint", minibatches_per_request=2)
        learner = LearnerConfig(network="nature_cnn", hidden_sizes=(512,), batch_size=32)
        made = served_shard(engine, ATARI_NETWORK, learner, ATARI, replay, folder / "replay")
        self._shard, self._writer = made.shard, made.writer
        self._learner = engine.spawn(
            "learner", LearnerRole, made.context, engine.calls, [self._shard], 0, need=Need(torch=True)
        )
        self._checkpoints = CheckpointStore(folder / "checkpoints", keep=2)
        self._thread = ThreadPoolExecutor(1)
        self._learning: list[Ref[LearnReport]] = []

    def insert(self, transitions: int) -> None:
        """Writes that many new transitions."""
        self._engine.get(self._engine.call(self._writer, Writer.push, -(-transitions // 512))[0])

    def learn(self, seconds: float) -> float:
        """Updates per second while nothing else goes on."""
        began, updates = perf_counter(), 0
        while perf_counter() - began < seconds:
            updates += self._step()
        return updates / (perf_counter() - began)

    def checkpoint(self) -> Cost:
        """Takes a checkpoint as a run does."""
        engine = self._engine
        partial = self._checkpoints.begin()
        began, updates, longest = perf_counter(), 0, 0.0
        (state,) = engine.call(self._learner, LearnerRole.state)
        reply = SealReply(done=False)
        while not reply.done:
            asked = perf_counter()
            (slice_ref,) = engine.call(self._shard, ShardRole.seal_slice, shard_folder(partial, 0))
            while slice_ref not in engine.wait([slice_ref, *self._learning], 10.0):
                updates += self._step()
            reply = engine.get(slice_ref)
            longest = max(longest, perf_counter() - asked)
        learner: LearnerState = engine.get(state)
        writing = self._thread.submit(
            self._checkpoints.commit, partial, NO_RUN, learner, {0: reply.segments or ()}
        )
        while not writing.done():
            updates += self._step()
        seconds = perf_counter() - began
        return Cost(writing.result(), seconds, longest * 1e3, updates / seconds)

    def _step(self) -> int:
        """Keeps two chunks in flight; returns the updates of those that are done."""
        while len(self._learning) < 2:
            self._learning.append(
                self._engine.call(self._learner, LearnerRole.learn, UPDATES_PER_CHUNK, returns=2)[0]
            )
        done = self._engine.wait(self._learning, 0.05)
        for ref in done:
            self._learning.remove(ref)
            self._engine.get(ref)
        return UPDATES_PER_CHUNK * len(done)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: a temporary one")
    options = parser.parse_args(arguments)
    print(processor(), flush=True)
    engine = RayEngine(private=True)
    try:
        engine.start()
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            report(Bench(engine, options.transitions, Path(folder)), options.transitions)
    finally:
        engine.close()


def report(bench: Bench, transitions: int) -> None:
    bench.learn(3.0)
    first: Cost | None = None
    print(f"{transitions:,} Atari transitions; updates/s alone and during a checkpoint")
    print(f"{'new':>10s} {'MB':>8s} {'new MB':>8s} {'s':>6s} slice ms   alone  during  ratio")
    for new in (transitions, transitions // 10, transitions // 50, 0):
        if first is not None and new:
            bench.insert(new)
        before = bench.learn(10.0)
        cost = bench.checkpoint()
        alone = median((before, bench.learn(10.0)))
        saved = cost.committed
        print(
            f"{new:10,d} {saved.num_bytes / 1e6:8.1f} {saved.new_bytes / 1e6:8.1f} {cost.seconds:6.2f} "
            f"{cost.longest_slice_milliseconds:8.1f} {alone:7.1f} {cost.updates_per_second:7.1f} "
            f"{cost.updates_per_second / alone:6.2f}",
            flush=True,
        )
        if first is None:
            first = cost
        elif new:
            share = new / transitions
            print(
                f"{'':10s} against the first, for each new transition: "
                f"{saved.new_bytes / first.committed.new_bytes / share:.2f} x the bytes, "
                f"{cost.seconds / first.seconds / share:.2f} x the seconds"
            )


if __name__ == "__main__":
    main()
