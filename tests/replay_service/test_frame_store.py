"""The plain and the compressed store against a list of frames, the two against each other; memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from replay_service import shard as shard_module
from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.frame_store import CompressedFrameStore, FrameStore, is_compressed, segment_frames
from replay_service.messages import PriorityUpdate, SampleRequest
from replay_service.shard import ReplayShard

IMAGE = FrameField("image", "|u1", (16, 16))
MASK = FrameField("mask", "|b1", (300,))
SPEED = FrameField("speed", "<f4", (2,))
WIDE = FrameField("wide", "<f4", (100,))
FIELDS = (SPEED, IMAGE, WIDE, MASK)
PLAIN_FIELDS = (FrameField("a", "<f4", (2,)), FrameField("b", "|u1", ()))


def _frames(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {
        "speed": rng.random((count, 2), np.float32),
        "image": rng.integers(0, 256, (count, 16, 16), np.uint8),
        "wide": rng.random((count, 100), np.float32),
        "mask": rng.random((count, 300)) < 0.5,
    }


def test_only_images_of_bytes_are_packed() -> None:
    assert [field.name for field in FIELDS if is_compressed(field)] == ["image", "mask"]
    assert not is_compressed(FrameField("small", "|u1", (15, 17)))


@given(st.integers(1, 9), st.lists(st.integers(0, 9), max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_plain_store_is_the_same_as_a_list(num_frames: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    store = FrameStore(PLAIN_FIELDS, num_frames)
    twin: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for size in sizes:
        size = min(size, num_frames)
        new = {"a": rng.random((size, 2), np.float32), "b": rng.integers(0, 256, size, np.uint8)}
        oldest = store.oldest_after(size)
        assert store.append(new) == len(twin["a"])
        for name, frames in twin.items():
            frames.extend(new[name])
        total = len(twin["a"])
        assert oldest == max(0, total - num_frames)
        assert store.stored_bytes == min(total, num_frames) * 9
        held = np.arange(oldest, total)
        # Every ordered pair of held frames: the second is reached by an offset from the first.
        gathered = store.gather(held, held[None, :] - held[:, None])
        for name, frames in twin.items():
            assert gathered[name].shape[:2] == (len(held), len(held))
            for window in gathered[name]:
                np.testing.assert_array_equal(window, np.array(frames[oldest:]))


@given(
    st.integers(1, 40),
    st.integers(2, 20),
    st.booleans(),
    st.lists(st.integers(0, 40), max_size=12),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_a_compressed_store_is_the_same_as_a_list(
    num_frames: int, span: int, into: bool, sizes: list[int], data: st.DataObject
) -> None:
    rng = np.random.default_rng(0)
    store = CompressedFrameStore(FIELDS, num_frames, span)
    assert store.num_frames >= num_frames
    # Number of each append's first frame -> its frames.
    appended: dict[int, dict[str, np.ndarray]] = {}
    for size in sizes:
        size = min(size, store.num_frames)
        oldest = store.oldest_after(size)
        new = _frames(rng, size)
        first = store.append(new)
        appended[first] = new
        assert all(first >= begin + len(frames["speed"]) for begin, frames in list(appended.items())[:-1])
        # As long as nothing else was promised to be gone, all is there.
        assert oldest <= first
        for begin, frames in appended.items():
            held = np.arange(max(begin, oldest), begin + len(frames["speed"]))
            if not len(held):
                continue
            count = data.draw(st.integers(1, 4))
            lowest = rng.integers(0, len(held), count)
            width = np.minimum(span, len(held) - lowest)
            chosen = held[lowest][:, None] + rng.integers(0, width[:, None], (count, 6))
            frame = chosen[:, data.draw(st.integers(0, 5))]
            out = None
            if into:
                out = {f.name: np.zeros((count, 6, *f.shape), f.dtype) for f in FIELDS}
            windows = store.gather(frame, chosen - frame[:, None], out)
            assert list(windows) == [field.name for field in FIELDS]
            for name, window in windows.items():
                np.testing.assert_array_equal(window, frames[name][chosen - begin])
                assert out is None or window is out[name]


def _shard(schema: BlockSchema, config: ReplayConfig, capacity: int) -> ReplayShard:
    return ReplayShard(
        config, schema, shard=0, incarnation=0, capacity=capacity, seed=np.random.SeedSequence(0)
    )


@given(
    st.integers(1, 5),
    st.integers(1, 7),
    st.sampled_from(["uniform", "prioritized"]),
    st.integers(1, 60),
    st.integers(4, 12),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), min_size=1, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_a_shard_draws_the_same_windows_bit_for_bit(
    random_block: Callable[..., TransitionBlock],
    stack: int,
    n_step: int,
    sampling: str,
    capacity: int,
    num_strides: int,
    sizes: list[tuple[int, int]],
) -> None:
    schema = BlockSchema((SPEED, IMAGE, MASK), stack, n_step)
    stride, _ = segment_frames(schema.span)
    plain = ReplayConfig(sampling=sampling)
    packed = dataclasses.replace(plain, compression="lz4")
    with pytest.MonkeyPatch.context() as patch:
        # Rings and blocks of whole strides waste no frame number, so both shards evict the same transitions.
        patch.setattr(shard_module, "frame_capacity", lambda schema, capacity: stride * num_strides)
        shards = [_shard(schema, config, capacity) for config in (plain, packed)]
    rng = np.random.default_rng(0)
    keys = np.zeros(0, np.int64)
    for sequence, (num_transitions, block_strides) in enumerate(sizes):
        block = random_block(
            schema,
            rng,
            num_transitions=min(num_transitions, capacity),
            num_frames=stride * block_strides,
            sequence=sequence,
        )
        counts = [shard.insert(encode(block)).status.count for shard in shards]
        assert counts[0] == counts[1]
        if not counts[0]:
            continue
        update = PriorityUpdate(keys, rng.random(len(keys), np.float32))
        drawn = [shard.exchange(update, SampleRequest((5, 3))) for shard in shards]
        np.testing.assert_array_equal(drawn[0].keys, drawn[1].keys)
        assert list(drawn[0].windows) == list(drawn[1].windows)
        for name, window in drawn[0].windows.items():
            np.testing.assert_array_equal(window, drawn[1].windows[name])
            assert window.dtype == drawn[1].windows[name].dtype
        keys = drawn[0].keys


def test_frame_numbers_that_stay_unused_hold_zeros() -> None:
    # Checkpoints write them, too: they must not depend on what the memory held before.
    store = CompressedFrameStore((SPEED,), 1_000, span=7)
    for _ in range(2):
        store.append({"speed": np.ones((1, 2), np.float32)})
    frames = store.gather(np.arange(store.next_frame), np.zeros((store.next_frame, 1), np.int64))["speed"]
    used = np.flatnonzero(frames.any(axis=(1, 2)))
    assert used.tolist() == [0, segment_frames(7)[0]]
    assert (frames[used] == 1.0).all()


def test_the_setting_decides_what_a_shard_stores(random_block: Callable[..., TransitionBlock]) -> None:
    schema = BlockSchema((FrameField("observation", "|u1", (84, 84)),), 4, 3)
    block = random_block(schema, np.random.default_rng(0), num_transitions=50, num_frames=60)
    block.frames["observation"][:] = np.arange(60, dtype=np.uint8)[:, None, None]
    stored_bytes = {}
    for compression in ("none", "lz4"):
        shard = _shard(schema, ReplayConfig(compression=compression), 100)
        stored_bytes[compression] = shard.insert(encode(block)).status.stored_bytes
    assert stored_bytes["none"] >= 60 * 84 * 84
    assert stored_bytes["lz4"] < stored_bytes["none"] / 10


# In a process of its own, whose heap nobody else has touched.
_MEMORY_PROGRAM = """
import numpy as np, psutil
from replay_service.block import FrameField
from replay_service.frame_store import CompressedFrameStore

def images(levels):
    return {"observation": rng.integers(0, levels, (200, 84, 84), np.uint8)}

def print_bytes():
    print(store.stored_bytes, psutil.Process().memory_info().rss - before)

rng = np.random.default_rng(0)
blocks = [images(4), images(4), images(1)]
store = CompressedFrameStore((FrameField("observation", "|u1", (84, 84)),), 2_000, span=7)
before = psutil.Process().memory_info().rss
for block, times in zip(blocks, (10, 40, 10)):
    for _ in range(times):
        store.append(block)
    print_bytes()
"""


def test_memory_is_bounded_and_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_PROGRAM], check=True, capture_output=True, text=True, timeout=120
    )
    (full, full_rss), (turned, turned_rss), (empty, empty_rss) = (
        tuple(map(int, line.split())) for line in done.stdout.splitlines()
    )
    assert full > 4 << 20
    # What the store says is what the process pays.
    assert full_rss == pytest.approx(full, rel=0.15)
    # Four more turns of the ring take nothing more.
    assert turned == pytest.approx(full, rel=0.02)
    assert turned_rss < 1.1 * full_rss
    # Frames that shrink to nothing give the memory back to the system.
    assert empty < 0.1 * full
    assert empty_rss < 0.4 * full_rss


def test_lz4_is_loaded_only_by_who_compresses() -> None:
    program = (
        "import sys\n"
        "import replay_service.shard, replay_service.sampler\n"
        "from replay_service.frame_store import CompressedFrameStore\n"
        "assert 'lz4' not in sys.modules\n"
        "CompressedFrameStore((), 1, 2)\n"
        "assert 'lz4' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
