"""The shard against a list of transitions with naively built windows; delivery, eviction, memory and errors.

Also tests replay_service/transition_store.py, in which the shard keeps its transitions, and
replay_service/messages.py, by which it is asked and answers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from replay_service import shard as shard_module
from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import BlockError, encode
from replay_service.config import ReplayConfig
from replay_service.messages import PriorityUpdate, SampleRequest, ShardStatus
from replay_service.shard import EmptyShardError, ReplayShard, SequenceGapError, UnknownKeyError
from replay_service.sum_tree import SumTree
from replay_service.transition_store import TRANSITION_DTYPE, CapacityError, frame_capacity

CONFIG = ReplayConfig(sampling="prioritized", priority_exponent=0.6, priority_epsilon=0.01)
VECTOR = BlockSchema((FrameField("observation", "<f4", (3,)),), 1, 1)


def _shard(
    schema: BlockSchema = VECTOR, capacity: int = 100, incarnation: int = 0, config: ReplayConfig = CONFIG
) -> ReplayShard:
    return ReplayShard(
        config,
        schema,
        shard=0,
        incarnation=incarnation,
        capacity=capacity,
        seed=np.random.SeedSequence(0),
    )


def _update(shard: ReplayShard, keys: np.ndarray, td_errors: np.ndarray) -> ShardStatus:
    return shard.exchange(PriorityUpdate(keys, td_errors), SampleRequest(())).status


class _Twin:
    """Transitions in a list, each with its windows built frame by frame when it is inserted."""

    def __init__(self, schema: BlockSchema, capacity: int, num_frames: int) -> None:
        self.schema = schema
        self.capacity = capacity
        self.num_frames = num_frames
        self.total_frames = 0
        self.next_key = 0
        self.transitions: list[dict] = []
        self.late = 0

    def insert(self, block: TransitionBlock) -> None:
        for i in range(block.num_transitions):
            self.transitions.append(self._transition(block, i))
            self.next_key += 1
        self.total_frames += block.num_frames
        overwritten = self.total_frames - self.num_frames
        while len(self.transitions) > self.capacity or any(
            transition["lowest"] < overwritten for transition in self.transitions
        ):
            del self.transitions[0]

    def _transition(self, block: TransitionBlock, i: int) -> dict:
        obs, following, first = (int(x[i]) for x in (block.obs_frame, block.next_frame, block.first_frame))
        stack = self.schema.stack
        obs_stack = [max(first, obs - age) for age in reversed(range(stack))]
        next_stack = [max(first, following - age) for age in reversed(range(stack))]
        return {
            "key": self.next_key,
            "lowest": self.total_frames + obs_stack[0],
            "obs": {name: np.stack([frames[f] for f in obs_stack]) for name, frames in block.frames.items()},
            "next": {
                name: np.stack([frames[f] for f in next_stack]) for name, frames in block.frames.items()
            },
            "action": block.action[i],
            "reward": block.reward[i],
            "discount": block.discount[i],
            "policy_version": block.policy_version[i],
            "td_error": float(block.priority[i]),
        }

    def update(self, keys: list[int], td_errors: list[float]) -> None:
        held = {transition["key"]: transition for transition in self.transitions}
        for key, td_error in zip(keys, td_errors, strict=True):
            if key in held:
                held[key]["td_error"] = td_error
            else:
                self.late += 1

    def priorities(self) -> list[float]:
        return [(transition["td_error"] + 0.01) ** 0.6 for transition in self.transitions]


def _check_status(status: ShardStatus, twin: _Twin, sampling: str) -> None:
    priorities = twin.priorities() if sampling == "prioritized" else [1.0] * len(twin.transitions)
    assert status.count == len(twin.transitions)
    assert status.mass == pytest.approx(math.fsum(priorities), rel=1e-12)
    assert status.min_priority == pytest.approx(min(priorities, default=math.inf), rel=1e-12)
    assert status.inserted_transitions_total == twin.next_key
    assert status.evicted_transitions_total == twin.next_key - len(twin.transitions)
    assert status.late_priorities_total == twin.late


SCHEMAS = st.builds(
    BlockSchema,
    st.just((FrameField("image", "|u1", (2, 2)), FrameField("speed", "<f4", ()))),
    st.integers(1, 4),
    st.integers(1, 3),
)


@given(
    SCHEMAS, st.integers(1, 12), st.integers(8, 30), st.sampled_from(["uniform", "prioritized"]), st.data()
)
@settings(max_examples=300, deadline=None)
def test_same_as_a_list_of_transitions(
    random_block: Callable[..., TransitionBlock],
    schema: BlockSchema,
    capacity: int,
    num_frames: int,
    sampling: str,
    data: st.DataObject,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # So few frames that transitions are evicted early, too.
        patch.setattr(shard_module, "frame_capacity", lambda schema, capacity: num_frames)
        shard = _shard(schema, capacity, config=dataclasses.replace(CONFIG, sampling=sampling))
    twin = _Twin(schema, capacity, num_frames)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    sequence = sampled = 0
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()) or not twin.transitions:
            block = random_block(
                schema,
                rng,
                num_transitions=data.draw(st.integers(0, min(capacity, 6))),
                num_frames=data.draw(st.integers(2, 8)),
                sequence=sequence,
            )
            sequence += 1
            twin.insert(block)
            _check_status(shard.insert(encode(block)).status, twin, sampling)
            continue
        keys = data.draw(st.lists(st.integers(0, twin.next_key - 1), max_size=8))
        td_errors = data.draw(st.lists(st.floats(0.0, 1e6, width=32), min_size=len(keys), max_size=len(keys)))
        twin.update(keys, td_errors)
        update = PriorityUpdate(np.array(keys, np.int64), np.array(td_errors, np.float32))
        counts = tuple(data.draw(st.lists(st.integers(0, 7), max_size=3))) if twin.transitions else ()
        reply = shard.exchange(update, SampleRequest(counts))
        _check_status(reply.status, twin, sampling)
        sampled += sum(counts)
        assert reply.status.sampled_transitions_total == sampled
        assert reply.counts == counts
        assert len(reply.keys) == len(reply.probability) == len(reply.action) == sum(counts)
        priorities = twin.priorities() if sampling == "prioritized" else [1.0] * len(twin.transitions)
        stack = schema.stack
        for m, key in enumerate(reply.keys.tolist()):
            place = key - twin.transitions[0]["key"]
            transition = twin.transitions[place]
            assert transition["key"] == key
            assert reply.probability[m] == pytest.approx(priorities[place] / sum(priorities), rel=1e-12)
            for name in ("action", "reward", "discount", "policy_version"):
                assert getattr(reply, name)[m] == transition[name]
            for name, window in reply.windows.items():
                assert window.shape[:2] == (sum(counts), schema.window)
                np.testing.assert_array_equal(window[m, :stack], transition["obs"][name])
                np.testing.assert_array_equal(window[m, -stack:], transition["next"][name])


# (incarnation, sequence) pushed after pushes 0 and 1 of incarnation 1: accepted, held already, or a gap.
DELIVERY = [
    ((1, 2), True),
    ((1, 1), False),
    ((1, 0), False),
    ((1, 3), SequenceGapError),
    ((2, 0), True),
    ((2, 1), SequenceGapError),
    ((2, 2), SequenceGapError),
    ((0, 0), False),
    ((0, 2), False),
    ((0, 9), False),
]


@pytest.mark.parametrize(("push", "expected"), DELIVERY)
def test_each_push_counts_once(
    random_block: Callable[..., TransitionBlock], push: tuple[int, int], expected: bool | type[Exception]
) -> None:
    rng = np.random.default_rng(0)

    def block(incarnation: int, sequence: int, writer: int = 5) -> np.ndarray:
        return encode(
            random_block(
                VECTOR,
                rng,
                num_transitions=3,
                num_frames=4,
                writer=writer,
                incarnation=incarnation,
                sequence=sequence,
            )
        )

    shard = _shard()
    for sequence in (0, 1):
        assert shard.insert(block(1, sequence)).accepted
    before = shard.status()
    if isinstance(expected, bool):
        reply = shard.insert(block(*push))
        assert reply.accepted is expected
        assert reply.status.inserted_transitions_total == 6 + 3 * expected
        assert reply.status.env_steps_total == 8 + 4 * expected
        # The same push again is held by now, whatever it was.
        assert not shard.insert(block(*push)).accepted
    else:
        with pytest.raises(expected, match="writer 5"):
            shard.insert(block(*push))
        assert shard.status() == before
    # Another writer's pushes are counted by themselves.
    assert shard.insert(block(0, 0, writer=6)).accepted


def test_a_replacing_shard_goes_on_where_its_writers_are(
    random_block: Callable[..., TransitionBlock],
) -> None:
    def push(sequence: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        return encode(random_block(VECTOR, rng, num_transitions=1, num_frames=2, sequence=sequence))

    shard = _shard(incarnation=1)
    for sequence in range(12, 15):
        assert shard.insert(push(sequence)).accepted
    assert shard.recovery is None
    with pytest.raises(SequenceGapError, match="expects push 15"):
        shard.insert(push(16))


def test_persisting_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="no folder"):
        _shard(config=dataclasses.replace(CONFIG, persist="continuous"))


def test_a_refused_block_changes_nothing(random_block: Callable[..., TransitionBlock]) -> None:
    shard = _shard(capacity=5)
    rng = np.random.default_rng(0)
    before = shard.status()
    with pytest.raises(CapacityError, match="6 transitions"):
        shard.insert(encode(random_block(VECTOR, rng, num_transitions=6, num_frames=7)))
    with pytest.raises(CapacityError, match="2000 frames"):
        shard.insert(encode(random_block(VECTOR, rng, num_transitions=2, num_frames=2000)))
    other = dataclasses.replace(VECTOR, n_step=2)
    with pytest.raises(BlockError, match="schema differs"):
        shard.insert(encode(random_block(other, rng, num_transitions=2, num_frames=4)))
    assert shard.status() == before
    assert shard.insert(encode(random_block(VECTOR, rng, num_transitions=5, num_frames=7))).accepted


def test_keeps_no_reference_to_the_pushed_bytes(random_block: Callable[..., TransitionBlock]) -> None:
    block = random_block(VECTOR, np.random.default_rng(0), num_transitions=9, num_frames=12)
    encoded = encode(block)
    shard = _shard()
    shard.insert(encoded)
    encoded[:] = 255
    reply = shard.exchange(None, SampleRequest((50,)))
    np.testing.assert_array_equal(reply.reward, block.reward[reply.keys])
    np.testing.assert_array_equal(
        reply.windows["observation"][:, 0], block.frames["observation"][block.obs_frame[reply.keys]]
    )


def test_replies_are_copies(random_block: Callable[..., TransitionBlock]) -> None:
    shard = _shard()
    shard.insert(encode(random_block(VECTOR, np.random.default_rng(0), num_transitions=1, num_frames=2)))
    first, second = (shard.exchange(None, SampleRequest((1,))) for _ in range(2))
    expected = second.windows["observation"].copy()
    first.windows["observation"][:] = -1.0
    first.reward[:] = -1.0
    third = shard.exchange(None, SampleRequest((1,)))
    np.testing.assert_array_equal(third.windows["observation"], expected)
    assert third.reward == second.reward


def test_keys_of_an_earlier_incarnation_are_refused(
    random_block: Callable[..., TransitionBlock],
) -> None:
    block = encode(random_block(VECTOR, np.random.default_rng(0), num_transitions=4, num_frames=5))
    old, new = _shard(incarnation=0), _shard(incarnation=1)
    old.insert(block)
    mass = new.insert(block).status.mass
    keys = old.exchange(None, SampleRequest((4,))).keys
    status = _update(new, keys, np.full(4, 100.0, np.float32))
    assert status.mass == mass
    assert status.late_priorities_total == 0
    metrics = new.status().metrics
    assert metrics is not None
    assert metrics.refused_priorities == 4
    assert status.incarnation == 1


def test_errors_are_named(random_block: Callable[..., TransitionBlock]) -> None:
    shard = _shard()
    assert len(shard.exchange(None, SampleRequest((0, 0))).keys) == 0
    with pytest.raises(EmptyShardError, match="cannot draw 3 transitions"):
        shard.exchange(None, SampleRequest((0, 3)))
    shard.insert(encode(random_block(VECTOR, np.random.default_rng(0), num_transitions=4, num_frames=5)))
    with pytest.raises(UnknownKeyError, match="key 4"):
        _update(shard, np.array([4]), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="2 keys but 1"):
        _update(shard, np.array([1, 2]), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="refused"):
        _update(shard, np.array([1]), np.array([np.nan], np.float32))


def test_memory_of_stored_images() -> None:
    """At most 1.05 x 7,056 bytes a transition: one 84 x 84 frame and all that belongs to it."""
    schema = BlockSchema((FrameField("observation", "|u1", (84, 84)),), 4, 3)
    for capacity in (100_000, 1_000_000):
        total = (
            frame_capacity(schema, capacity) * 7056
            + capacity * TRANSITION_DTYPE.itemsize
            + SumTree(capacity).nbytes
        )
        assert total / capacity <= 1.05 * 7056


def test_stored_bytes_counts_what_was_written(random_block: Callable[..., TransitionBlock]) -> None:
    shard = _shard(config=ReplayConfig(sampling="uniform"), capacity=10)
    rng = np.random.default_rng(0)
    for sequence in range(200):
        block = random_block(VECTOR, rng, num_transitions=4, num_frames=6, sequence=sequence)
        status = shard.insert(encode(block)).status
        frames = min(6 * (sequence + 1), frame_capacity(VECTOR, 10))
        assert status.stored_bytes == frames * 12 + min(4 * (sequence + 1), 10) * TRANSITION_DTYPE.itemsize
