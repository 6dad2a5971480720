"""Bytes of each stored Atari transition, and what compression costs in sampling throughput.

Run as `python -m benchmarks.replay_memory`. Real frames: the project's own actors play three games at random
(stack 4, three-step returns, chunks as an automatic configuration chooses them). Their blocks fill two shards
of 100,000 prioritized transitions, one with plain frames, one with lz4; the blocks repeat if a game gives too
few. Bytes are all that a shard holds: frames, transitions, priorities, segment overhead. Draws of 512 are
timed in turn on both shards; a ratio is lz4's throughput over the plain one's. "shard" is the draw alone,
"sampler" a whole minibatch at the learner in one process, "ray" the same with shard and learner in processes
of their own. `--seconds-per-game` bounds the play.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from statistics import fmean, median
from time import perf_counter
from typing import Any

import numpy as np

from actors.config import ActorsConfig, EnvConfig
from actors.rollout import EnvActor
from benchmarks.processor import processor
from cluster.engines.engine import Engine, Handle, Need
from cluster.engines.ray_engine import RayEngine
from cluster.engines.serial_engine import SerialEngine
from cluster.runtime.shard_calls import EngineTransport
from replay_service.block import TransitionBlock
from replay_service.codec import encode
from replay_service.config import Compression, ReplayConfig
from replay_service.messages import (
    InsertReply,
    PriorityUpdate,
    SampleReply,
    SampleRequest,
    ShardStatus,
)
from replay_service.sampler import ReplaySampler
from replay_service.shard import ReplayShard

GAMES = ("Pong", "Breakout", "Seaquest")
STACK, N_STEP, LANES = 4, 3, 16
STEPS_PER_CHUNK = 30 * (STACK + N_STEP)
CAPACITY = 100_000
BATCH_SIZE = 512
PAIRS = 31
FRAME_BYTES = 84 * 84
KINDS: tuple[Compression, ...] = ("none", "lz4")


class Blocks:
    """A sink that keeps what an actor pushes."""

    def __init__(self) -> None:
        self.held: list[TransitionBlock] = []

    def push(self, block: TransitionBlock) -> None:
        self.held.append(block)

    def statuses(self) -> tuple[ShardStatus, ...]:
        return ()


class RandomPolicy:
    """Stands in for a policy; an actor without weights acts at random and never calls it."""

    def load(self, flat_weights: np.ndarray) -> None:
        raise AssertionError("no weights were sent")

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        raise AssertionError("no weights were sent")


def play(game: str, seconds: float) -> list[TransitionBlock]:
    blocks = Blocks()
    actor = EnvActor(
        EnvConfig(id=f"ALE/{game}-v5", stack=STACK),
        ActorsConfig(envs_per_actor=LANES, n_step=N_STEP),
        policy=RandomPolicy(),
        sink=blocks,
        actor=0,
        incarnation=0,
        num_actors=1,
        seed=np.random.SeedSequence(0),
    )
    began = perf_counter()
    while perf_counter() - began < seconds:
        actor.rollout(STEPS_PER_CHUNK, 0, None, 0)
    actor.close()
    return blocks.held


def pushes(blocks: list[TransitionBlock]) -> Iterator[np.ndarray]:
    """The encoded blocks, repeated until a shard of CAPACITY has been filled more than once."""
    num_transitions = 0
    for sequence in count():
        if num_transitions > 1.2 * CAPACITY:
            return
        block = replace(blocks[sequence % len(blocks)], sequence=sequence)
        num_transitions += block.num_transitions
        yield encode(block)


def make_shard(compression: Compression, blocks: list[TransitionBlock]) -> ReplayShard:
    return ReplayShard(
        ReplayConfig(sampling="prioritized", compression=compression),
        blocks[0].schema,
        shard=0,
        incarnation=0,
        capacity=CAPACITY,
        seed=np.random.SeedSequence(0),
    )


class EngineShard:
    """A shard as an engine spawns it."""

    def __init__(self, compression: Compression, block: TransitionBlock) -> None:
        self._shard = make_shard(compression, [block])

    def insert(self, encoded: np.ndarray) -> InsertReply:
        return self._shard.insert(encoded)

    def exchange(self, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
        return self._shard.exchange(update, request)

    def status(self) -> ShardStatus:
        return self._shard.status()


def throughput_ratio(plain: Callable[[], object], packed: Callable[[], object]) -> tuple[float, float, float]:
    """Ratio of throughputs and the milliseconds of each: medians over PAIRS timed in turn."""

    def milliseconds(draw: Callable[[], object]) -> float:
        began = perf_counter()
        draw()
        return (perf_counter() - began) * 1e3

    for draw in (plain, packed):
        for _ in range(3):
            draw()
    pairs = [(milliseconds(plain), milliseconds(packed)) for _ in range(PAIRS)]
    return (
        median(a / b for a, b in pairs),
        median(a for a, _ in pairs),
        median(b for _, b in pairs),
    )


def shards_alone(blocks: list[TransitionBlock]) -> dict[str, float]:
    """Bytes, milliseconds and the ratio of draws alone, by the column of the table."""
    measured: dict[str, float] = {}
    shards = {}
    for kind in KINDS:
        shard = make_shard(kind, blocks)
        for encoded in pushes(blocks):
            shard.insert(encoded)
        status = shard.status()
        measured[kind] = status.stored_bytes / status.count
        shards[kind] = shard
    request = SampleRequest((BATCH_SIZE,))
    plain, packed = shards["none"], shards["lz4"]
    measured["shard"], measured["plain ms"], measured["lz4 ms"] = throughput_ratio(
        lambda: plain.exchange(None, request), lambda: packed.exchange(None, request)
    )
    return measured


@contextmanager
def ray_engine() -> Iterator[RayEngine]:
    engine = RayEngine(private=True)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


def minibatches_over(engine: Engine, blocks: list[TransitionBlock]) -> float:
    """The ratio of whole minibatches at the learner, with shards that the engine spawns."""
    samplers = []
    handles = []
    for kind in KINDS:
        handle: Handle[Any] = engine.spawn(f"shard-{kind}", EngineShard, kind, blocks[0], need=Need())
        handles.append(handle)
        for encoded in pushes(blocks):
            engine.get(engine.call(handle, EngineShard.insert, encoded)[0])
        sampler = ReplaySampler(
            ReplayConfig(sampling="prioritized"),
            EngineTransport(engine.calls, [handle]),
            batch_size=BATCH_SIZE,
            minibatches_per_request=1,
            prefetch_requests=0,  # nothing is in flight while the other is timed
            rng=np.random.default_rng(0),
        )
        samplers.append(sampler)
    plain, packed = samplers
    ratio, *_ = throughput_ratio(lambda: plain.next_minibatch(0), lambda: packed.next_minibatch(0))
    for handle in handles:
        engine.kill(handle)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds-per-game", type=float, default=5.0)
    seconds = parser.parse_known_args()[0].seconds_per_game
    print(processor(), flush=True)
    raw = 2 * STACK * FRAME_BYTES
    print(f"raw {raw:,} bytes a transition (observation and next observation, {STACK} frames each)")
    print(
        f"{'':9s} {'plain B':>8s} {'/7,056':>7s} {'lz4 B':>6s} "
        f"{'plain ms':>8s} {'lz4 ms':>7s} {'shard':>6s} {'sampler':>8s} {'ray':>5s}"
    )
    rows = []
    with ray_engine() as engine:
        for game in GAMES:
            blocks = play(game, seconds)
            measured = shards_alone(blocks)
            measured["sampler"] = minibatches_over(SerialEngine(), blocks)
            measured["ray"] = minibatches_over(engine, blocks)
            rows.append(measured)
            print_row(game, measured)
    print_row("mean", {name: fmean(row[name] for row in rows) for name in rows[0]})


def print_row(name: str, row: dict[str, float]) -> None:
    print(
        f"{name:9s} {row['none']:8,.0f} {row['none'] / FRAME_BYTES:7.3f} {row['lz4']:6,.0f} "
        f"{row['plain ms']:8.2f} {row['lz4 ms']:7.2f} "
        f"{row['shard']:6.2f} {row['sampler']:8.2f} {row['ray']:5.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
