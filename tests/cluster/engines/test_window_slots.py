"""Windows of large requests come by a slot, whichever engine carries the request.

Tests cluster/runtime/shard_calls.py over the engines.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from qfleet_configs import ATARI

from actors.config import ActorsConfig
from cluster.engines.engine import Engine, Need, Ref
from cluster.engines.serial_engine import SerialEngine
from cluster.runtime.role import RoleContext
from cluster.runtime.shard_calls import EngineTransport
from cluster.runtime.shard_role import ShardRole
from cluster.settings.config import RunConfig
from replay_service.block import TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.messages import SampleReply
from replay_service.sampler import ReplaySampler

CONFIG = RunConfig(actors=ActorsConfig(n_step=1), replay=ReplayConfig(capacity=200, sampling="prioritized"))
SPEC = replace(ATARI, num_actions=2, backend="sync", max_episode_steps=None)


class _Recording(EngineTransport):
    def collect(self, ticket: Ref) -> SampleReply:
        self.replies = [*getattr(self, "replies", []), super().collect(ticket)]
        return self.replies[-1]


def _block(shard: int) -> TransitionBlock:
    rng = np.random.default_rng(shard)
    frame = np.arange(100, dtype=np.int32)
    return TransitionBlock(
        schema=SPEC.block_schema(1),
        writer=0,
        incarnation=0,
        sequence=0,
        env_steps=100,
        frames={"observation": rng.integers(0, 256, (101, 84, 84), dtype=np.uint8)},
        action=np.zeros(100, np.int32),
        reward=rng.random(100, np.float32),
        discount=np.ones(100, np.float32),
        one_step_reward=np.ones(100, np.float32),
        end=np.zeros(100, np.uint8),
        policy_version=np.zeros(100, np.int64),
        obs_frame=frame,
        next_frame=frame + 1,
        first_frame=np.zeros(100, np.int32),
        priority=rng.random(100, np.float32) * np.float32(1 + shard),
    )


def _drawn(engine: Engine, folder: Path) -> tuple[list[np.ndarray], list[SampleReply]]:
    """The windows of eight minibatches over two shards, and the shards' replies."""
    shards = []
    for index in range(2):
        context = RoleContext(f"shard {index}", CONFIG, SPEC, folder, folder)
        handle = engine.spawn(context.name, ShardRole, context, index, 0, 100, need=Need())
        engine.get(engine.call(handle, ShardRole.insert, encode(_block(index)))[0])
        shards.append(handle)
    transport = _Recording(engine.calls, shards)
    sampler = ReplaySampler(
        CONFIG.replay,
        transport,
        batch_size=16,
        minibatches_per_request=2,
        prefetch_requests=2,
        rng=np.random.default_rng(0),
    )
    windows = [sampler.next_minibatch(update).windows["observation"].copy() for update in range(8)]
    return windows, transport.replies


def test_windows_come_by_slots_through_ray_as_in_one_process(ray_engine: Engine, tmp_path: Path) -> None:
    windows, replies = _drawn(ray_engine, tmp_path)
    twin, _ = _drawn(SerialEngine(), tmp_path)
    np.testing.assert_array_equal(windows, twin)
    # The first request, to two shards, goes out before the size of the windows is known.
    assert [bool(reply.windows) for reply in replies] == [True] * 2 + [False] * 6
