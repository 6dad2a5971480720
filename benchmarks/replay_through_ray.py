"""A shard in a process of its own, through both engines: writer and sampler at once, and what windows cost.

Run as `python -m benchmarks.replay_through_ray --peer-python PATH`, the interpreter of an environment that
has dm-reverb; without it the peer is not measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest.mock import patch

import numpy as np

from benchmarks.called_roles import Writer, both_engines, served_shard
from benchmarks.processor import processor
from benchmarks.replay_data import ATARI, CARTPOLE, CONFIG, full_shard, peer, print_paired
from benchmarks.update_step import ATARI as ATARI_NETWORK
from benchmarks.update_step import CARTPOLE as CARTPOLE_NETWORK
from cluster.engines.engine import Engine, Handle, Ref
from cluster.runtime.shard_calls import EngineTransport
from cluster.runtime.shard_role import ShardRole
from learner.config import LearnerConfig
from replay_service import window_slots
from replay_service.block import BlockSchema
from replay_service.messages import SampleReply, SampleRequest
from replay_service.sampler import ReplaySampler

CARTPOLE_CAPACITY = 1_000_000
ATARI_CAPACITY = 20_000
BATCH = 512
MINIBATCHES = 16
SECONDS = 4.0
PAIRS = 5
REPEATS = 60


Sampler = ReplaySampler[Ref[SampleReply]]


def spawn(
    engine: Engine, schema: BlockSchema, capacity: int, folder: Path
) -> tuple[Handle[ShardRole], Handle[Writer]]:
    """A full shard, and its writer."""
    network = {CARTPOLE: CARTPOLE_NETWORK, ATARI: ATARI_NETWORK}[schema]
    made = served_shard(engine, network, LearnerConfig(), schema, replace(CONFIG, capacity=capacity), folder)
    return made.shard, made.writer


def sampler_of(engine: Engine, shard: Handle[ShardRole], minibatches: int, prefetch: int) -> Sampler:
    return ReplaySampler(
        CONFIG,
        EngineTransport(engine.calls, [shard]),
        batch_size=BATCH,
        minibatches_per_request=minibatches,
        prefetch_requests=prefetch,
        rng=np.random.default_rng(0),
    )


class Traffic:
    """Loops of insert 64, sample 512, update 512; the writer's process pushes meanwhile."""

    def __init__(self, engine: Engine, shard: Handle[ShardRole], writer: Handle[Writer]) -> None:
        self._engine = engine
        self._writer = writer
        self._sampler = sampler_of(engine, shard, MINIBATCHES, prefetch=2)

    def rate(self) -> float:
        """Loops a second; for each of them 64 transitions are inserted, in blocks of 512."""
        loops = 0
        pushing = self._engine.call(self._writer, Writer.push, 1)[0]
        began = perf_counter()
        while perf_counter() - began < SECONDS:
            for _ in range(BATCH // 64):
                minibatch = self._sampler.next_minibatch(loops)
                self._sampler.give_back(minibatch.index, np.abs(minibatch.reward))
                loops += 1
            self._engine.get(pushing)
            pushing = self._engine.call(self._writer, Writer.push, 1)[0]
        self._engine.get(pushing)
        return loops / (perf_counter() - began)


def windows_milliseconds(sampler: Sampler) -> float:
    began = perf_counter()
    minibatch = sampler.next_minibatch(0)
    took = (perf_counter() - began) * 1e3
    sampler.give_back(minibatch.index, np.abs(minibatch.reward))
    return took


def print_windows(engine: Engine, shard: Handle[ShardRole]) -> None:
    """One Atari request at a time, by reply and by slot, beside the same in one process."""
    local = full_shard(ATARI, ATARI_CAPACITY)
    print(f"\n{'windows':>10s} {'bytes':>12s} {'in process':>10s} {'by reply':>14s} {'by slot':>14s}   (ms)")
    for batch in (2, 4, 8, 32, 128, BATCH):
        samplers = []
        for min_slot_bytes in (1 << 60, 0):
            with patch.object(window_slots, "MIN_SLOT_BYTES", min_slot_bytes):
                sampler = ReplaySampler(
                    CONFIG,
                    EngineTransport(engine.calls, [shard]),
                    batch_size=batch,
                    minibatches_per_request=1,
                    prefetch_requests=0,
                    rng=np.random.default_rng(0),
                )
                for _ in range(5):
                    windows_milliseconds(sampler)
            samplers.append(sampler)
        in_process, reply, slot = [], [], []
        for _ in range(REPEATS):
            reply.append(windows_milliseconds(samplers[0]))
            slot.append(windows_milliseconds(samplers[1]))
            began = perf_counter()
            local.exchange(None, SampleRequest((batch,)))
            in_process.append((perf_counter() - began) * 1e3)
        bare, by_reply, by_slot = map(median, (in_process, reply, slot))
        print(
            f"{batch:10d} {batch * ATARI.window * 7_056:12,d} {bare:10.2f}"
            f" {by_reply:6.2f} ({by_reply / bare:4.1f}x) {by_slot:6.2f} ({by_slot / bare:4.1f}x)",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", type=Path)
    peer_python: Path | None = parser.parse_args(arguments).peer_python
    print(processor(), flush=True)
    with both_engines() as engines, tempfile.TemporaryDirectory() as folder:
        spawned = [spawn(one, CARTPOLE, CARTPOLE_CAPACITY, Path(folder)) for one in engines.values()]
        ours, ray = (Traffic(engine, *roles) for engine, roles in zip(engines.values(), spawned, strict=True))
        ours.rate()
        ray.rate()
        rates = [(ours.rate(), ray.rate()) for _ in range(PAIRS)]
        print(f"{'CartPole, 1M held, writer and sampler at once':48s}   (medians of pairs in turns)")
        for name, side in zip(engines, zip(*rates, strict=True), strict=True):
            print(f"sampled transitions/s, {name:17s} {BATCH * median(side):12,.0f}")
        print(f"processes / Ray {median(a / b for a, b in rates):33.2f}", flush=True)
        with peer(peer_python, "dm-reverb", "cartpole") as other:
            print_paired("loops/s", ours.rate, other, "dm-reverb", pairs=5)
        for engine, roles in zip(engines.values(), spawned, strict=True):
            for role in roles:
                engine.kill(role)
        for name, engine in engines.items():
            shard, writer = spawn(engine, ATARI, ATARI_CAPACITY, Path(folder))
            print(f"\n{name}:")
            print_windows(engine, shard)
            engine.kill(writer)
            engine.kill(shard)


if __name__ == "__main__":
    main()
