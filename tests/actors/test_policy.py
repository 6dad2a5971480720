"""Numpy policies against loops over single weights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from actors.policy import MlpPolicy, TablePolicy


def plain_forward(sizes: list[int], flat: list[float], observation: list[float]) -> list[float]:
    values, offset = observation, 0
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        weights = [flat[offset + o * inputs : offset + (o + 1) * inputs] for o in range(outputs)]
        offset += inputs * outputs
        bias = flat[offset : offset + outputs]
        offset += outputs
        values = [
            sum(w * v for w, v in zip(weights[o], values, strict=True)) + bias[o] for o in range(outputs)
        ]
        if layer < len(sizes) - 2:
            values = [max(v, 0.0) for v in values]
    assert offset == len(flat)
    return values


@pytest.mark.parametrize("sizes", [[6, 2], [6, 5, 2], [6, 5, 7, 3]])
@pytest.mark.parametrize("dtype", ["f4", "u1", "i8"])
@pytest.mark.parametrize("pixels", [False, True])
def test_mlp_equals_a_plain_loop(sizes: list[int], dtype: str, pixels: bool) -> None:
    rng = np.random.default_rng(0)
    policy = MlpPolicy(sizes, pixels=pixels)
    flat = rng.normal(size=policy.num_weights).astype(np.float32)
    policy.load(flat)
    for num_lanes in (4, 1, 4):  # buffers must follow the batch
        observations = (rng.normal(size=(num_lanes, 2, 3)) * 50 + 100).astype(dtype)
        scale = 255.0 if pixels else 1.0
        expected = [
            plain_forward(sizes, flat.tolist(), (observation.ravel() / scale).tolist())
            for observation in observations
        ]
        q = policy.q_values(observations)
        assert q.dtype == np.float32
        assert q == pytest.approx(np.array(expected), rel=1e-4, abs=1e-3)


def test_mlp_results_and_weights_are_its_own() -> None:
    policy = MlpPolicy([2, 3, 2])
    flat = np.arange(policy.num_weights, dtype=np.float32)
    policy.load(flat)
    observations = np.ones((1, 2), np.float32)
    first = policy.q_values(observations)
    kept = first.copy()
    flat[:] = 0.0
    assert np.array_equal(policy.q_values(observations), kept)
    policy.q_values(-observations)
    assert np.array_equal(first, kept)
    assert np.array_equal(observations, np.ones((1, 2)))


def test_a_table_is_looked_up() -> None:
    policy = TablePolicy(3, 2)
    policy.load(np.arange(6, dtype=np.float32))
    assert policy.q_values(np.array([2, 0, 2])).tolist() == [[4, 5], [0, 1], [4, 5]]


@pytest.mark.parametrize("policy", [MlpPolicy([4, 2]), TablePolicy(5, 2)])
@pytest.mark.parametrize("flat", [np.zeros(9, np.float32), np.zeros((10, 1), np.float32), np.zeros(10)])
def test_weights_of_another_shape_are_refused(policy: MlpPolicy | TablePolicy, flat: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"takes \(10,\) float32"):
        policy.load(flat)


def test_observations_of_another_shape_are_refused() -> None:
    mlp, table = MlpPolicy([4, 2]), TablePolicy(5, 2)
    for policy in (mlp, table):
        policy.load(np.zeros(10, np.float32))
    with pytest.raises(ValueError, match=r"do not flatten to \[N, 4\]"):
        mlp.q_values(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="integers"):
        table.q_values(np.zeros(3))
    with pytest.raises(ValueError, match="integers"):
        table.q_values(np.zeros((3, 1), np.int64))


@pytest.mark.parametrize("policy", [MlpPolicy([4, 2]), TablePolicy(5, 2)])
def test_acting_without_weights_is_refused(policy: MlpPolicy | TablePolicy) -> None:
    with pytest.raises(ValueError, match="no weights"):
        policy.q_values(np.zeros(4, np.int64))


@pytest.mark.parametrize("sizes", [[], [4], [4, 0, 2]])
def test_impossible_layers_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="layer sizes"):
        MlpPolicy(sizes)


def test_an_impossible_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry"):
        TablePolicy(0, 2)
