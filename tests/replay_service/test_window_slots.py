"""Slots give what replies give, bit for bit, on every path; and leave no memory behind, however they end.

Tests replay_service/host_memory.py, too.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from replay_service import window_slots
from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.host_memory import MemoryAddress  # noqa: F401, named where an owner's address is evaluated
from replay_service.messages import PriorityUpdate, SampleReply, SampleRequest, ShardStatus
from replay_service.sampler import ReplaySampler
from replay_service.shard import ReplayShard
from replay_service.window_slots import SlotAddress, SlotMapper, SlotPlace, WindowArray, WindowSlot

FIELDS = (FrameField("image", "|u1", (5, 3)), FrameField("speed", "<f4", ()))
ARRAYS = (WindowArray("image", "|u1", (2, 4, 3, 5, 3)), WindowArray("speed", "<f4", (2, 4, 3)))
CONFIG = ReplayConfig(sampling="prioritized")
BLOCKS = Callable[..., TransitionBlock]

# Another process of this host: it shares a slot, or writes to one, and waits to be killed.
OWNER = """
import sys, time
from replay_service.window_slots import WindowArray, WindowSlot
slot = WindowSlot({arrays})
print(repr(slot.address), flush=True)
time.sleep(600)
"""
WRITER = """
import time
from replay_service.host_memory import MemoryAddress
from replay_service.window_slots import SlotAddress, SlotMapper, SlotPlace, WindowArray
(first, second) = SlotMapper().parts(SlotPlace({address}, (0, 1)), (4, 2))
second["image"][:] = 77
print("written", flush=True)
time.sleep(600)
"""


@dataclasses.dataclass(eq=False)
class _Call:
    shard: int
    update: PriorityUpdate | None
    request: SampleRequest
    reply: SampleReply | None = None


class _Transport:
    """Calls shards in the order asked: at once, or (`lazy`) only when something waits for that shard.

    `remote`: shards that cannot reach a slot. `broken`: the next wait for this shard raises.
    """

    def __init__(self, shards: list[ReplayShard], *, lazy: bool, remote: tuple[int, ...] = ()) -> None:
        self.shards = shards
        self.replies: list[tuple[int, SampleReply]] = []
        self.slots: set[SlotAddress] = set()
        self.broken: int | None = None
        self._lazy = lazy
        self._remote = remote
        self._queues: list[deque[_Call]] = [deque() for _ in shards]

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> _Call:
        if shard in self._remote:
            request = dataclasses.replace(request, slot=None)
        if request.slot is not None:
            self.slots.add(request.slot.address)
        call = _Call(shard, update, request)
        self._queues[shard].append(call)
        if not self._lazy:
            self._run(shard, until=call)
        return call

    def collect(self, ticket: _Call) -> SampleReply:
        if self.broken == ticket.shard:
            self.broken = None
            raise ConnectionError("the shard died")
        self._run(ticket.shard, until=ticket)
        assert ticket.reply is not None
        return ticket.reply

    def status(self, shard: int) -> ShardStatus:
        self._run(shard, until=None)
        return self.shards[shard].status()

    def _run(self, shard: int, until: _Call | None) -> None:
        while self._queues[shard] and (until is None or until.reply is None):
            call = self._queues[shard].popleft()
            call.reply = self.shards[shard].exchange(call.update, call.request)
            self.replies.append((shard, call.reply))


def _shards(random_block: BLOCKS, schema: BlockSchema, count: int) -> list[ReplayShard]:
    shards = []
    for index in range(count):
        seed = np.random.SeedSequence([7, index])
        shard = ReplayShard(CONFIG, schema, shard=index, incarnation=0, capacity=64, seed=seed)
        block = random_block(schema, np.random.default_rng(index), num_transitions=40, num_frames=50)
        # Shards of different mass, so that they have different shares of a minibatch.
        shard.insert(encode(dataclasses.replace(block, priority=block.priority * np.float32(3.0**index))))
        shards.append(shard)
    return shards


def _sampler(transport: _Transport, prefetch: int) -> ReplaySampler[_Call]:
    return ReplaySampler(
        CONFIG,
        transport,
        batch_size=9,
        minibatches_per_request=3,
        prefetch_requests=prefetch,
        rng=np.random.default_rng(5),
    )


def _minibatches(sampler: ReplaySampler[_Call], count: int) -> Iterator[list[np.ndarray]]:
    """Copies of all arrays of `count` minibatches, taken as late as a learner may read them."""
    for update in range(count):
        minibatch = sampler.next_minibatch(update)
        sampler.give_back(minibatch.index, np.abs(minibatch.reward) + np.float32(update))
        fields = [getattr(minibatch, name) for name in ("action", "reward", "discount", "policy_version")]
        yield [array.copy() for array in (*minibatch.windows.values(), *fields, minibatch.weight)]


def _slot_bytes(num_bytes: int) -> AbstractContextManager[object]:
    return patch.object(window_slots, "MIN_SLOT_BYTES", num_bytes)


def _slots_of_this_process() -> int:
    """How many slots this process holds by a mapping or a descriptor."""
    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    inodes = {int(line.split()[4]) for line in lines if "memfd:qfleet-windows" in line}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            inodes |= {link.stat().st_ino} if "memfd:qfleet-windows" in os.readlink(link) else set()
    return len(inodes)


@given(
    stack=st.integers(1, 4),
    n_step=st.integers(1, 3),
    num_shards=st.integers(1, 3),
    prefetch=st.integers(0, 3),
    lazy=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_slots_and_replies_give_the_same_minibatches(
    random_block: BLOCKS,
    stack: int,
    n_step: int,
    num_shards: int,
    prefetch: int,
    lazy: bool,
    data: st.DataObject,
) -> None:
    schema = BlockSchema(FIELDS, stack, n_step)
    remote = tuple(s for s in range(num_shards) if data.draw(st.booleans()))
    with_slots = _Transport(_shards(random_block, schema, num_shards), lazy=lazy, remote=remote)
    without = _Transport(_shards(random_block, schema, num_shards), lazy=lazy)
    count = 3 * (prefetch + 3)
    with _slot_bytes(0):
        seen = list(_minibatches(_sampler(with_slots, prefetch), count))
    with _slot_bytes(1 << 40):
        expected = list(_minibatches(_sampler(without, prefetch), count))
    for minibatch, twin in zip(seen, expected, strict=True):
        for array, same in zip(minibatch, twin, strict=True):
            assert array.dtype == same.dtype
            np.testing.assert_array_equal(array, same)
    assert all(reply.windows for _, reply in without.replies)
    # The first request goes out before the size of the windows is known.
    later = with_slots.replies[num_shards:]
    assert later
    assert all(bool(reply.windows) == (shard in remote) for shard, reply in later)
    assert len(with_slots.slots) == (prefetch + 1 if len(remote) < num_shards else 0)


def test_a_late_shard_writes_into_no_slot_in_use(random_block: BLOCKS) -> None:
    """After an error the other shards still answer the request that failed: that slot serves no other."""
    schema = BlockSchema(FIELDS, 2, 1)
    shards = []
    for index in range(3):
        shard = ReplayShard(
            CONFIG, schema, shard=index, incarnation=0, capacity=64, seed=np.random.SeedSequence([7, index])
        )
        block = random_block(schema, np.random.default_rng(index), num_transitions=40, num_frames=50)
        # A transition and its frames name their shard.
        block.reward[:] = index
        block.frames["image"][:] = index
        shard.insert(encode(block))
        shards.append(shard)
    with _slot_bytes(0):
        transport = _Transport(shards, lazy=True)
        sampler = _sampler(transport, prefetch=1)
        for update in range(30):
            if update % 6 == 3:
                transport.broken = 0
                with pytest.raises(ConnectionError):
                    sampler.next_minibatch(update)
            minibatch = sampler.next_minibatch(update)
            assert (minibatch.windows["image"] == minibatch.reward[:, None, None, None]).all()


def test_memory_goes_with_sampler_and_shards(random_block: BLOCKS) -> None:
    assert _slots_of_this_process() == 0
    with _slot_bytes(0):
        transport = _Transport(_shards(random_block, BlockSchema(FIELDS, 2, 1), 2), lazy=False)
        sampler = _sampler(transport, prefetch=2)
        for shard in (0, 1, 0):
            list(_minibatches(sampler, 6))
            sampler.shard_replaced(shard)
        transport.broken = 1
        with pytest.raises(ConnectionError):
            list(_minibatches(sampler, 6))
        list(_minibatches(sampler, 30))
    transport.shards.clear()
    # Two requests in flight and one being read; what was abandoned is gone.
    assert _slots_of_this_process() == 3
    del sampler, transport
    assert _slots_of_this_process() == 0


def test_a_killed_learner_leaves_nothing_to_a_shard_that_goes_on() -> None:
    program = OWNER.format(arrays=ARRAYS)
    mapper = SlotMapper()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        address = eval(owner.stdout.readline())
        parts = mapper.parts(SlotPlace(address, (0, 1)), (4, 2))
        owner.send_signal(signal.SIGKILL)
    assert parts is not None
    # A shard in the middle of a copy finishes it.
    parts[1]["image"][:] = 1
    assert _slots_of_this_process() == 1
    del parts
    mine = WindowSlot(ARRAYS)
    assert mapper.parts(SlotPlace(mine.address, (0, 1)), (4, 2)) is not None
    assert mapper.parts(SlotPlace(address, (0, 1)), (4, 2)) is None
    assert _slots_of_this_process() == 1  # its own


def test_slots_of_several_ranks_stay_mapped() -> None:
    program = OWNER.format(arrays=ARRAYS)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        theirs, mine, mapper = eval(owner.stdout.readline()), WindowSlot(ARRAYS), SlotMapper()

        def memory(address: SlotAddress) -> int | None:
            parts = mapper.parts(SlotPlace(address, (0, 1)), (4, 2))
            return None if parts is None else parts[0]["image"].__array_interface__["data"][0]

        first, again = ([memory(each) for each in (theirs, mine.address)] for _ in range(2))
        owner.send_signal(signal.SIGKILL)
    assert None not in first
    assert again == first


def test_a_killed_shard_leaves_the_learners_slot_whole() -> None:
    slot = WindowSlot(ARRAYS)
    program = WRITER.format(address=slot.address)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    expected = np.zeros((2, 4, 3, 5, 3), np.uint8)
    expected[1, 1:3] = 77
    np.testing.assert_array_equal(slot.windows["image"], expected)
    assert not slot.windows["speed"].any()
    del slot
    assert _slots_of_this_process() == 0


@pytest.mark.parametrize(
    "change",
    [{"host": "another"}, {"inode": 0}, {"descriptor": 1 << 20}, {"pid": 1 << 30}],
    ids=lambda change: next(iter(change)),
)
def test_a_slot_out_of_reach_is_none(change: dict[str, object]) -> None:
    slot = WindowSlot(ARRAYS)
    memory = dataclasses.replace(slot.address.memory, **change)  # type: ignore[arg-type]
    address = dataclasses.replace(slot.address, memory=memory)
    assert SlotMapper().parts(SlotPlace(slot.address, (0, 0)), (1, 1)) is not None
    assert SlotMapper().parts(SlotPlace(address, (0, 0)), (1, 1)) is None


def test_too_little_memory_is_one_warning(random_block: BLOCKS, caplog: pytest.LogCaptureFixture) -> None:
    schema = BlockSchema(FIELDS, 2, 1)
    expected = list(_minibatches(_sampler(_Transport(_shards(random_block, schema, 2), lazy=False), 2), 12))
    transport = _Transport(_shards(random_block, schema, 2), lazy=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with _slot_bytes(0), caplog.at_level(logging.WARNING):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        try:
            seen = list(_minibatches(_sampler(transport, 2), 12))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.name for record in caplog.records] == [window_slots.__name__]
    assert "replies carry them: [Errno 27]" in caplog.text
    assert all(reply.windows for _, reply in transport.replies)
    for minibatch, twin in zip(seen, expected, strict=True):
        for array, same in zip(minibatch, twin, strict=True):
            np.testing.assert_array_equal(array, same)
