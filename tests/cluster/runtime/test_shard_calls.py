"""How actors and the learner call shards: blocks go round and are sent again, exchanges are collected.

Tests cluster/runtime/shard_role.py too: it is the shard at the other end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qfleet_configs import resolved_config
from qfleet_reports import shard_status

from actors.block_builder import BlockBuilder
from actors.core import EnvSpec
from actors.envs.stepper import Step
from cluster.engines.engine import Handle, Need, ObjectLost, Ref, RoleError
from cluster.engines.serial_engine import SerialEngine
from cluster.runtime.role import RoleContext
from cluster.runtime.shard_calls import EngineTransport, RoundRobinSink
from cluster.runtime.shard_role import ShardRole
from replay_service.block import TransitionBlock
from replay_service.codec import decode
from replay_service.messages import InsertReply, PriorityUpdate, SampleRequest
from replay_service.sampler import ShardLostError

SPEC = EnvSpec((), "<i8", 11, 4, 1, "sync", "next_step", None, None)
"""Eleven states and four actions."""


class Shelf:
    """A shard that only notes whose block came."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.came: list[tuple[int, int, int]] = []
        self.transitions = 0

    def insert(self, encoded: np.ndarray) -> InsertReply:
        block = decode(encoded, expected_schema=SPEC.block_schema(1))
        if block.policy_version[0] == 13:
            raise RuntimeError("an unlucky block")
        self.came.append((block.writer, block.incarnation, block.sequence))
        self.transitions += block.num_transitions
        return InsertReply(True, shard_status(shard=self.shard, inserted_transitions_total=self.transitions))


def block_of_two_transitions(version: int = 1) -> TransitionBlock:
    """Transitions made by the real builder: two steps of one lane of the table environment."""
    nobody, frame = np.zeros(1, np.bool_), np.zeros(1, np.int64)
    step = Step(
        frames=frame,
        reward=np.ones(1),
        terminated=nobody,
        truncated=nobody,
        ended=nobody,
        fake=nobody,
        starts=nobody,
        life_lost=nobody,
        final_lanes=np.zeros(0, np.int64),
        final_frames=frame[:0],
        broken=None,
    )
    builder = BlockBuilder(SPEC.block_schema(1), 1, 4, 0.9)
    builder.reset(frame)
    builder.begin(3, version)
    for t in range(3):  # the third step's transition waits for the Q-values behind it
        builder.add(t, np.zeros(1, np.int64), np.zeros((1, 4), np.float32), step)
    block = builder.build(np.zeros(0, np.float32))
    assert block is not None
    assert block.num_transitions == 2
    return block


def test_blocks_go_to_the_shards_in_turn_numbered_for_each() -> None:
    engine = SerialEngine()
    shelves = [engine.spawn(f"shard {index}", Shelf, index, need=Need()) for index in range(3)]
    sink = RoundRobinSink(engine.calls, shelves, writer=4, incarnation=2, pushes_in_flight=2)
    for _ in range(7):
        sink.push(block_of_two_transitions())
        assert sink.unacknowledged_transitions <= 4
    statuses = {status.shard: status.inserted_transitions_total for status in sink.statuses()}
    assert sink.unacknowledged_transitions == 0
    # Writer 4 of 3 shards begins with shard 1, so that the writers' first blocks spread.
    assert statuses == {1: 6, 2: 4, 0: 4}
    came = {index: handle.target.role.came for index, handle in enumerate(shelves)}
    assert came == {index: [(4, 2, round_) for round_ in range(3 if index == 1 else 2)] for index in range(3)}


@pytest.mark.parametrize("num_shards", [1, 2])
def test_what_a_lost_shard_did_not_acknowledge_goes_to_the_next(num_shards: int) -> None:
    engine = SerialEngine()
    shelves = [engine.spawn(f"shard {index}", Shelf, index, need=Need()) for index in range(num_shards)]
    sink = RoundRobinSink(engine.calls, shelves, writer=0, incarnation=0, pushes_in_flight=2)
    for _ in range(2 * num_shards):
        sink.push(block_of_two_transitions())
    sink.statuses()
    engine.kill(shelves[0])
    for _ in range(6):
        sink.push(block_of_two_transitions())
        sink.statuses()
    # With another shard left only the push that found out is kept; without, all are, and nobody waited.
    kept = 1 if num_shards == 2 else 6
    assert sink.unacknowledged_transitions == 2 * kept
    fresh = engine.spawn("shard 0", Shelf, 0, need=Need())
    sink.replace_shard(0, fresh)
    sink.push(block_of_two_transitions())
    sink.statuses()
    assert sink.unacknowledged_transitions == 0
    came = [sequence for _, _, sequence in fresh.target.role.came]
    assert came[:kept] == list(range(2, 2 + kept))
    if num_shards == 2:
        others = [sequence for _, _, sequence in shelves[1].target.role.came]
        assert others == list(range(len(others)))
        # Eleven pushes, two of which had been acknowledged by the shard that died.
        assert len(came) + len(others) == 9


def test_a_push_that_failed_shows_at_the_next_ones() -> None:
    engine = SerialEngine()
    shelf = engine.spawn("shard 0", Shelf, 0, need=Need())
    sink = RoundRobinSink(engine.calls, [shelf], writer=0, incarnation=0, pushes_in_flight=2)
    sink.push(block_of_two_transitions(version=13))
    with pytest.raises(RoleError, match="an unlucky block"):
        sink.statuses()


def real_shard(engine: SerialEngine, folder: Path, *, incarnation: int = 0) -> Handle[ShardRole]:
    """Shard 0 for 100 transitions, sampled uniformly."""
    config = resolved_config("actors.n_step=1", "replay.sampling=uniform")
    context = RoleContext("shard 0", config, SPEC, logs=folder, replay=folder / "replay")
    return engine.spawn("shard 0", ShardRole, context, 0, incarnation, 100, need=Need())


class ForgetfulEngine(SerialEngine):
    """The memory of the next value that somebody gets is gone; the next call may not even arrive."""

    forgets = False
    drops = False

    def call(self, handle: Handle[Any], method: Any, *args: Any, returns: int = 1) -> tuple[Ref[Any], ...]:
        if self.drops:
            self.drops = False
            return super().call(handle, ShardRole.status)
        return super().call(handle, method, *args, returns=returns)

    def get(self, ref: Ref[Any]) -> Any:
        if self.forgets:
            self.forgets = False
            raise ObjectLost("shard 0", "its machine is gone")
        return super().get(ref)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_push_whose_reply_is_lost_is_sent_again_and_taken_once(tmp_path: Path, arrives: bool) -> None:
    engine = ForgetfulEngine()
    sink = RoundRobinSink(engine.calls, [real_shard(engine, tmp_path)], 0, 0, pushes_in_flight=3)
    engine.drops = not arrives
    pushes = 3 if arrives else 1
    for _ in range(pushes):
        sink.push(block_of_two_transitions())
    engine.forgets = True
    (status,) = sink.statuses()
    assert sink.unacknowledged_transitions == 0
    assert status.inserted_transitions_total == 2 * pushes


def test_an_exchange_brings_transitions_and_new_priorities(tmp_path: Path) -> None:
    engine = SerialEngine()
    shard = real_shard(engine, tmp_path)
    sink = RoundRobinSink(engine.calls, [shard], 0, 0, pushes_in_flight=1)
    sink.push(block_of_two_transitions(version=5))
    transport = EngineTransport(engine.calls, [shard])
    assert transport.num_shards == 1
    assert transport.status(0).count == 2
    reply = transport.collect(transport.exchange(0, None, SampleRequest((3, 4))))
    assert reply.counts == (3, 4)
    assert reply.policy_version.tolist() == [5] * 7
    assert set(reply.keys.tolist()) <= {0, 1}
    update = PriorityUpdate(reply.keys, np.ones(7, np.float32))
    assert transport.collect(transport.exchange(0, update, SampleRequest((1,)))).keys.size == 1


def test_a_lost_shard_is_told_as_such_until_another_takes_its_place(tmp_path: Path) -> None:
    engine = ForgetfulEngine()
    shard = real_shard(engine, tmp_path)
    transport = EngineTransport(engine.calls, [shard])
    engine.forgets = True
    with pytest.raises(ShardLostError, match="its machine is gone"):
        transport.status(0)
    engine.kill(shard)
    with pytest.raises(ShardLostError, match="shard 0: killed"):
        transport.status(0)
    with pytest.raises(ShardLostError, match="shard 0: killed"):
        transport.collect(transport.exchange(0, None, SampleRequest((1,))))
    transport.replace_shard(0, real_shard(engine, tmp_path, incarnation=1))
    assert transport.status(0).incarnation == 1


def test_an_error_of_a_shards_own_code_is_no_lost_shard() -> None:
    engine = SerialEngine()
    transport = EngineTransport(engine.calls, [engine.spawn("shard 0", Shelf, 0, need=Need())])
    with pytest.raises(RoleError, match="has no attribute 'exchange'"):
        transport.collect(transport.exchange(0, None, SampleRequest((1,))))
