"""The frame ring against a list of all frames ever appended."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from replay_service.block import FrameField
from replay_service.frame_store import FrameStore

FIELDS = (FrameField("a", "<f4", (2,)), FrameField("b", "|u1", ()))


@given(st.integers(1, 9), st.lists(st.integers(0, 9), max_size=12))
@settings(max_examples=100, deadline=None)
def test_same_as_a_list(num_frames: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    store = FrameStore(FIELDS, num_frames)
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
