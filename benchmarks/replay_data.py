"""Parts that the replay benchmarks share: schemas, blocks to push, full shards, processes of peers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.shard import ReplayShard

CARTPOLE = BlockSchema((FrameField("observation", "<f4", (4,)),), stack=1, n_step=1)
ATARI = BlockSchema((FrameField("observation", "|u1", (84, 84)),), stack=4, n_step=1)
CARTPOLE_CAPACITY = 1_000_000
ATARI_CAPACITY = 100_000
CONFIG = ReplayConfig(sampling="prioritized")


def random_block(schema: BlockSchema, num_transitions: int, seed: int = 0) -> TransitionBlock:
    """One lane's block of one episode, random contents."""
    rng = np.random.default_rng(seed)
    obs_frame = np.arange(num_transitions, dtype=np.int32)
    return TransitionBlock(
        schema=schema,
        writer=0,
        incarnation=0,
        sequence=0,
        env_steps=num_transitions,
        frames={
            field.name: rng.integers(0, 256, (num_transitions + 1, *field.shape)).astype(field.dtype)
            for field in schema.frame_fields
        },
        action=rng.integers(0, 2, num_transitions, dtype=np.int32),
        reward=rng.random(num_transitions, dtype=np.float32),
        discount=np.full(num_transitions, 0.99, np.float32),
        one_step_reward=np.ones(num_transitions, np.float32),
        end=np.zeros(num_transitions, np.uint8),
        policy_version=np.zeros(num_transitions, np.int64),
        obs_frame=obs_frame,
        next_frame=obs_frame + 1,
        first_frame=np.zeros(num_transitions, np.int32),
        priority=rng.random(num_transitions, dtype=np.float32),
    )


def encoded_blocks(schema: BlockSchema, num_transitions: int, *, writer: int) -> Iterator[np.ndarray]:
    """Pushes of one writer without end, encoded when asked for."""
    block = random_block(schema, num_transitions, seed=writer)
    sequence = 0
    while True:
        yield encode(replace(block, writer=writer, sequence=sequence))
        sequence += 1


def full_shard(schema: BlockSchema, capacity: int, config: ReplayConfig = CONFIG) -> ReplayShard:
    """A shard filled to its capacity; prioritized by default."""
    shard = ReplayShard(
        config, schema, shard=0, incarnation=0, capacity=capacity, seed=np.random.SeedSequence(0)
    )
    pushes = encoded_blocks(schema, 512, writer=0)
    while shard.status().count < capacity:
        shard.insert(next(pushes))
    return shard


class Peer:
    """A peer's buffer, filled, in a process of its own interpreter; idle except while `rate` waits for it."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self.name = name
        self._process = process

    def rate(self) -> float:
        """Loops a second of one timed run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


@contextmanager
def peer(python: Path | None, name: str, shape: str) -> Iterator[Peer | None]:
    """The peer `name` on "cartpole" or "atari" transitions; None where `python` does not have it."""
    if python is None:
        yield None
        return
    program = Path(__file__).with_name("replay_peers.py")
    with subprocess.Popen(
        [str(python), str(program), name, shape],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        title = process.stdout.readline().strip()
        yield Peer(process, title) if title else None
        process.kill()


def print_paired(what: str, ours: Callable[[], float], other: Peer | None, name: str, pairs: int = 7) -> None:
    """Both sides in turns; the ratio is the median over the pairs."""
    if other is None:
        rate = median(ours() for _ in range(pairs))
        print(f"{what:40s} {rate:12,.0f}   {name}: not measured", flush=True)
        return
    rates = [(ours(), other.rate()) for _ in range(pairs)]
    mine, theirs = (median(side) for side in zip(*rates, strict=True))
    ratio = median(a / b for a, b in rates)
    print(f"{what:40s} {mine:12,.0f}   {other.name}: {theirs:,.0f}   ratio {ratio:.2f}", flush=True)
