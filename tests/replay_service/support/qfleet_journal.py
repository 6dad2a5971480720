"""Helpers for shards with a journal: make them, push to them, read what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.journal.durability import SealReply
from replay_service.shard import ReplayShard

BlockMaker = Callable[..., TransitionBlock]

SCHEMA = BlockSchema((FrameField("observation", "<f4", (2,)), FrameField("image", "|u1", (2, 2))), 2, 2)
CONFIG = ReplayConfig(
    sampling="prioritized", priority_exponent=0.6, priority_epsilon=1e-6, persist="continuous"
)


def make_shard(
    folder: Path | None,
    incarnation: int = 0,
    capacity: int = 60,
    config: ReplayConfig = CONFIG,
    *,
    recovers_later: bool = False,
) -> ReplayShard:
    return ReplayShard(
        config,
        SCHEMA,
        shard=0,
        incarnation=incarnation,
        capacity=capacity,
        seed=np.random.SeedSequence(0),
        folder=folder,
        recovers_later=recovers_later,
    )


def insert(
    shard: ReplayShard, random_block: BlockMaker, sequences: range, *, writer: int = 0, count: int = 5
) -> list[TransitionBlock]:
    """Pushes blocks of `count` transitions, whose contents depend on writer and sequence alone."""
    blocks = []
    for sequence in sequences:
        rng = np.random.default_rng([writer, sequence])
        block = random_block(
            SCHEMA, rng, num_transitions=count, num_frames=count + 2, writer=writer, sequence=sequence
        )
        assert shard.insert(encode(block)).accepted
        blocks.append(block)
    return blocks


def keys_of(shard: ReplayShard) -> np.ndarray:
    """The keys held, oldest first."""
    return np.arange(shard.store.oldest_key, shard.store.next_key)


def contents(shard: ReplayShard) -> dict[str, np.ndarray]:
    """All transitions held, oldest first, with their windows and TD errors."""
    transitions = shard.store.gather(keys_of(shard))
    fields = ("action", "reward", "discount", "policy_version")
    return {
        **transitions.windows,
        **{name: getattr(transitions, name) for name in fields},
        "td_error": shard.selector.td_errors(shard.store.oldest_key, shard.store.next_key),
    }


def are_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


def seal(shard: ReplayShard, into: Path) -> SealReply:
    """A whole checkpoint."""
    while not (reply := shard.seal_slice(into)).done:
        pass
    return reply
