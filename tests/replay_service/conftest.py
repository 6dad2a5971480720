"""Builders of blocks and shards that the tests of this folder share; makes support/ importable by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.shard import ReplayShard

sys.path.insert(0, str(Path(__file__).parent / "support"))


def _random_block(
    schema: BlockSchema,
    rng: np.random.Generator,
    *,
    num_transitions: int,
    num_frames: int,
    sequence: int = 0,
    writer: int = 0,
    incarnation: int = 0,
    priority: np.ndarray | None = None,
) -> TransitionBlock:
    """A valid block of random contents, whose transitions refer to its frames in any order."""
    span = rng.integers(1, min(schema.n_step, num_frames - 1) + 1, num_transitions)
    obs = rng.integers(0, num_frames - span)
    first = rng.integers(np.maximum(0, obs - schema.stack - 1), obs + 1)
    return TransitionBlock(
        schema=schema,
        writer=writer,
        incarnation=incarnation,
        sequence=sequence,
        env_steps=num_transitions + 1,
        frames={
            field.name: rng.integers(0, 128, (num_frames, *field.shape)).astype(field.dtype)
            for field in schema.frame_fields
        },
        action=rng.integers(0, 5, num_transitions).astype(np.int32),
        reward=rng.normal(size=num_transitions).astype(np.float32),
        discount=rng.random(num_transitions).astype(np.float32),
        one_step_reward=rng.normal(size=num_transitions).astype(np.float32),
        end=rng.integers(0, 4, num_transitions).astype(np.uint8),
        policy_version=rng.integers(0, 1 << 40, num_transitions),
        obs_frame=obs.astype(np.int32),
        next_frame=(obs + span).astype(np.int32),
        first_frame=first.astype(np.int32),
        priority=rng.random(num_transitions).astype(np.float32) if priority is None else priority,
    )


def _shard_of(
    priorities: np.ndarray,
    *,
    shard: int = 0,
    seed: int = 0,
    sampling: str = "prioritized",
    exponent: float = 1.0,
) -> ReplayShard:
    """A shard with one transition per priority: the i-th has the key i and the reward 1000 * shard + i."""
    schema = BlockSchema((FrameField("observation", "<f4", (2,)),), 1, 1)
    config = ReplayConfig(sampling=sampling, priority_exponent=exponent, priority_epsilon=1e-12)
    replay = ReplayShard(
        config,
        schema,
        shard=shard,
        incarnation=0,
        capacity=len(priorities),
        seed=np.random.SeedSequence([seed, shard]),
    )
    rng = np.random.default_rng(0)
    block = _random_block(
        schema,
        rng,
        num_transitions=len(priorities),
        num_frames=len(priorities) + 1,
        priority=np.asarray(priorities, np.float32),
    )
    block.reward[:] = 1000 * shard + np.arange(len(priorities))
    replay.insert(encode(block))
    return replay


@pytest.fixture(scope="session")
def random_block() -> Callable[..., TransitionBlock]:
    return _random_block


@pytest.fixture(scope="session")
def shard_of() -> Callable[..., ReplayShard]:
    return _shard_of
