"""The arithmetic of sharding: worked numbers, bounds, and unbiasedness at any staleness."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from replay_service.messages import PriorityUpdate, SampleRequest
from replay_service.shard import ReplayShard
from replay_service.sharding import (
    allocate,
    draw_probability,
    importance_exponent,
    importance_weights,
    shard_capacities,
    shard_starts,
)


def test_shard_capacities() -> None:
    assert shard_capacities(10, 4) == (3, 3, 2, 2)
    assert shard_capacities(8, 1) == (8,)
    with pytest.raises(ValueError, match="cannot be split"):
        shard_capacities(3, 4)


def test_importance_weights_worked_by_hand() -> None:
    # N = 4, beta = 1/2, q = (1/2, 1/4, 1/8, 1/8): (N q)^-beta = (1/sqrt 2, 1, sqrt 2, sqrt 2); over sqrt 2.
    weight = importance_weights(np.array([0.5, 0.25, 0.125, 0.125]), 0.5)
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, [0.5, math.sqrt(0.5), 1.0, 1.0], rtol=1e-7)
    np.testing.assert_array_equal(importance_weights(np.array([0.5, 0.25]), 1.0), np.float32([0.5, 1.0]))
    np.testing.assert_array_equal(importance_weights(np.array([0.5, 0.25]), 0.0), np.float32([1.0, 1.0]))


def test_draw_probability_worked_by_hand() -> None:
    # Shares 3/4 and 1/4; two draws of the first shard, one of the last, none of the middle one.
    q = draw_probability(np.array([0.75, 0.0, 0.25]), np.array([2, 0, 1]), np.array([0.2, 0.4, 0.8]))
    np.testing.assert_allclose(q, [0.15, 0.3, 0.2], rtol=1e-15)


def test_importance_exponent_rises_to_one() -> None:
    values = [importance_exponent(update, 0.4, 100) for update in (0, 50, 100, 1000)]
    assert values == [0.4, 0.7, 1.0, 1.0]


def test_allocate_worked_by_hand() -> None:
    # B = 4 over shares (5/8, 3/8): edges at 2.5 and 4. Points u, u + 1, u + 2, u + 3.
    assert allocate(np.array([5.0, 3.0]), 4, 1, 0.0).tolist() == [[3, 1]]
    assert allocate(np.array([5.0, 3.0]), 4, 1, 0.6).tolist() == [[2, 2]]
    assert allocate(np.array([5.0, 3.0]), 4, 2, 0.0).tolist() == [[3, 1], [2, 2]]
    # Just below 1, where 2 - u is 1 in floating point: no draw may be lost.
    assert allocate(np.array([1.0]), 2, 1, np.nextafter(1.0, 0.0)).tolist() == [[2]]


def test_shard_starts_worked_by_hand() -> None:
    # Two minibatches over three shards.
    assert shard_starts(np.array([[2, 0, 1], [0, 3, 0]])).tolist() == [[0, 2, 2], [0, 0, 3]]


MASSES = st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=1, max_size=8).filter(any)


@given(MASSES, st.integers(1, 600), st.integers(1, 20), st.floats(0.0, 1.0, exclude_max=True))
@settings(max_examples=300, deadline=None)
def test_allocate_is_within_one_of_its_expectation(
    masses: list[float], batch_size: int, num_minibatches: int, u: float
) -> None:
    counts = allocate(np.array(masses), batch_size, num_minibatches, u)
    share = np.array(masses) / sum(masses)
    assert counts.shape == (num_minibatches, len(masses))
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == batch_size).all()
    assert (counts[:, np.array(masses) == 0.0] == 0).all()
    slack = 1e-9 * batch_size * num_minibatches
    assert (np.abs(counts - batch_size * share) < 1.0 + slack).all()
    assert (np.abs(counts.sum(axis=0) - num_minibatches * batch_size * share) < 1.0 + slack).all()


def test_allocate_is_unbiased() -> None:
    # The mean over a fine grid of u is the integral over [0, 1) up to the grid's step.
    masses, grid = np.array([0.1, 3.0, 0.7, 0.0, 1.23]), 20_000
    mean = np.mean([allocate(masses, 7, 3, (i + 0.5) / grid) for i in range(grid)], axis=0)
    np.testing.assert_allclose(mean, np.tile(7 * masses / masses.sum(), (3, 1)), atol=2.0 / grid)


@pytest.mark.parametrize("masses", [[0.0, 0.0], [1.0, math.nan], [1.0, math.inf], [1.0, -0.5]])
def test_allocate_refuses(masses: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be sampled from"):
        allocate(np.array(masses), 4, 1, 0.5)


def _estimates(
    shards: list[ReplayShard], stale: np.ndarray, values: np.ndarray, rng: np.random.Generator, shortcut: str
) -> np.ndarray:
    """2,000 estimates of the mean of `values` [S, N] over all items, from weighted minibatches of 16."""
    estimates = []
    for _ in range(2000):
        shares = stale / stale.sum()
        counts = allocate(stale, 16, 1, rng.random())[0]
        if shortcut == "equal draws per shard":
            counts = np.full(len(shards), 16 // len(shards))
        replies = [s.exchange(None, SampleRequest((int(n),))) for s, n in zip(shards, counts, strict=True)]
        within = np.concatenate([reply.probability for reply in replies])
        now = np.array([reply.status.mass for reply in replies])
        q = draw_probability(shares if shortcut == "" else now / now.sum(), counts, within)
        drawn = np.concatenate([values[s][reply.keys] for s, reply in enumerate(replies)])
        estimates.append(np.mean(drawn / (values.size * q)))
    return np.array(estimates)


@pytest.mark.parametrize("shortcut", ["", "weights from p / P of now", "equal draws per shard"])
def test_weighted_mean_is_unbiased_with_stale_masses(
    shard_of: Callable[..., ReplayShard], shortcut: str
) -> None:
    """Five standard errors: chance failure about 6e-7. The shortcuts are beyond ten."""
    rng = np.random.default_rng(5)
    td_errors = rng.uniform(0.5, 1.5, (4, 25)) * np.array([[1.0], [3.0], [10.0], [30.0]])
    values = rng.normal(size=(4, 25)) + np.arange(1.0, 5.0)[:, None]
    shards = [shard_of(td_errors[s], shard=s) for s in range(4)]
    stale = np.array([shard.status().mass for shard in shards])
    # After the masses were told, one shard's priorities fall to a tenth and another's double.
    for s, factor in ((3, 0.1), (0, 2.0)):
        update = PriorityUpdate(np.arange(25), (td_errors[s] * factor).astype(np.float32))
        shards[s].exchange(update, SampleRequest(()))
    estimates = _estimates(shards, stale, values, rng, shortcut)
    standard_error = estimates.std() / math.sqrt(len(estimates))
    deviation = abs(estimates.mean() - values.mean()) / standard_error
    if shortcut:
        assert deviation > 10.0
    else:
        assert deviation < 5.0
