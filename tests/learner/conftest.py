from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from learner.config import NetworkSpec
from replay_service.block import FrameField
from replay_service.messages import Minibatch, ShardStatus

torch.set_num_threads(1)

MinibatchMaker = Callable[..., Minibatch]


class ListSource:
    """Serves a list of minibatches in turn and keeps what comes back."""

    def __init__(self, minibatches: Sequence[Minibatch]) -> None:
        self.minibatches = minibatches
        self.asked: list[int] = []
        self.given_back: list[tuple[int, np.ndarray]] = []

    def next_minibatch(self, update: int) -> Minibatch:
        self.asked.append(update)
        return self.minibatches[(len(self.asked) - 1) % len(self.minibatches)]

    def give_back(self, index: int, td_errors: np.ndarray) -> None:
        self.given_back.append((index, td_errors))

    def statuses(self) -> tuple[ShardStatus, ...]:
        return ()


@pytest.fixture
def list_source() -> type[ListSource]:
    return ListSource


@pytest.fixture
def parts_spec() -> NetworkSpec:
    """Observations of four arrays, in stacks of two."""
    parts = (
        FrameField("camera", "|u1", (2, 36, 40)),
        FrameField("arm.speed", "<f4", (2, 3)),
        FrameField("arm.flags", "|b1", (2, 5)),
        FrameField("height", "<f4", (2,)),
    )
    return NetworkSpec((), "|V", None, 3, 2, parts, pixels=("camera",), image_layouts={"camera": "HW"})


def random_frames(spec: NetworkSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Frames of an observation of one array."""
    if spec.num_states is not None:
        return rng.integers(spec.num_states, size=shape)
    if spec.observation_dtype in ("uint8", "|u1"):
        return rng.integers(256, size=shape, dtype=np.uint8)
    if spec.observation_dtype == "|b1":
        return rng.random(shape) < 0.5
    return rng.normal(size=shape).astype(spec.observation_dtype)


@pytest.fixture
def random_minibatch() -> MinibatchMaker:
    """A minibatch for any spec: a third of its transitions terminal, with uneven importance weights.

    width: frames in a window, stack + 1 unless given.
    """

    def make(spec: NetworkSpec, batch_size: int, seed: int = 0, width: int | None = None) -> Minibatch:
        rng = np.random.default_rng(seed)
        leading = (batch_size, width or spec.stack + 1)
        windows = {
            f"observation.{name}" if spec.parts else name: random_frames(
                array, (*leading, *array.frame_shape), rng
            )
            for name, array in spec.arrays.items()
        }
        return Minibatch(
            windows=windows,
            action=rng.integers(spec.num_actions, size=batch_size, dtype=np.int32),
            reward=rng.normal(size=batch_size).astype(np.float32),
            discount=np.where(rng.random(batch_size) < 1 / 3, 0.0, 0.97).astype(np.float32),
            policy_version=rng.integers(-9, 0, size=batch_size),
            weight=rng.uniform(0.2, 1.0, batch_size).astype(np.float32),
            index=seed,
        )

    return make


@pytest.fixture
def table_minibatch() -> MinibatchMaker:
    """A minibatch for a table network of transitions (s, a, r, discount, s'), weights 1 unless given."""

    def make(
        transitions: Sequence[tuple[int, int, float, float, int]], weight: Sequence[float] | None = None
    ) -> Minibatch:
        s_tm1, a_tm1, r_t, discount_t, s_t = zip(*transitions, strict=True)
        return Minibatch(
            windows={"observation": np.stack([s_tm1, s_t], axis=1).astype(np.int64)},
            action=np.array(a_tm1, np.int32),
            reward=np.array(r_t, np.float32),
            discount=np.array(discount_t, np.float32),
            policy_version=np.zeros(len(transitions), np.int64),
            weight=np.ones(len(transitions), np.float32) if weight is None else np.array(weight, np.float32),
            index=0,
        )

    return make
