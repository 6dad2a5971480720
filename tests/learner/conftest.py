from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from learner.config import NetworkSpec
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
def random_minibatch() -> MinibatchMaker:
    """Any spec's minibatch of B rows, a third of them terminal, with uneven importance weights."""

    def make(spec: NetworkSpec, batch_size: int, seed: int = 0) -> Minibatch:
        rng = np.random.default_rng(seed)
        frame = spec.observation_shape[1:] if spec.stack > 1 else spec.observation_shape
        shape = (batch_size, spec.stack + 1, *frame)
        if spec.num_states is not None:
            window = rng.integers(spec.num_states, size=shape)
        elif spec.observation_dtype == "uint8":
            window = rng.integers(256, size=shape, dtype=np.uint8)
        else:
            window = rng.normal(size=shape).astype(spec.observation_dtype)
        return Minibatch(
            windows={"observation": window},
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
    """Rows (s, a, r, discount, s') for a table network, weights 1 unless given."""

    def make(
        rows: Sequence[tuple[int, int, float, float, int]], weight: Sequence[float] | None = None
    ) -> Minibatch:
        s_tm1, a_tm1, r_t, discount_t, s_t = zip(*rows, strict=True)
        return Minibatch(
            windows={"observation": np.stack([s_tm1, s_t], axis=1).astype(np.int64)},
            action=np.array(a_tm1, np.int32),
            reward=np.array(r_t, np.float32),
            discount=np.array(discount_t, np.float32),
            policy_version=np.zeros(len(rows), np.int64),
            weight=np.ones(len(rows), np.float32) if weight is None else np.array(weight, np.float32),
            index=0,
        )

    return make
