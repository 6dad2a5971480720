"""Values of states and bonuses against plain loops, and against the learner's targets, their twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from actors.soft_values import GREEDY, SoftValues
from learner.objectives.munchausen import Munchausen, munchausen_bonus, soft_outputs

SOFT = SoftValues(alpha=0.9, temperature=0.5, clip=-1.0)


def test_greedy_values_are_maxima_without_a_bonus() -> None:
    q = np.array([[[1.0, 5.0], [3.0, -np.inf]]], np.float32)
    assert GREEDY.state_values(q).tolist() == [[3.0, 5.0]]
    assert GREEDY.bonus(np.array([1.0]), np.array([3.0])) == 0.0


def test_soft_values_by_hand() -> None:
    # As in tests/learner/objectives/test_munchausen.py: the soft value of (1, 0) at 1/2 is 1.063464.
    q = np.array([[1.0, 0.0], [0.0, 1.0], [1e4, 0.0]], np.float32)
    values = SOFT.state_values(q)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [1.063464, 1.063464, 1e4], rtol=1e-6)
    bonus = SOFT.bonus(np.array([1.0, 0.0, 0.0]), values)
    np.testing.assert_allclose(bonus, [0.9 * -0.063464, -0.9, -0.9], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.03, 0.5, 4.0])
def test_they_are_the_learner_s(temperature: float) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(6, 3, 5)).astype(np.float32)  # [T, A, N]
    allowed = rng.random(q.shape) < 0.6
    allowed[:, 1] = True
    actions = rng.integers(3, size=(6, 5))
    np.put_along_axis(allowed, actions[:, None], True, axis=1)
    masked = np.where(allowed, q, np.float32(-np.inf))
    soft = SoftValues(0.9, temperature, -1.0)
    values = soft.state_values(masked)
    taken = np.take_along_axis(q, actions[:, None], axis=1)[:, 0]
    bonus = soft.bonus(taken, values)
    for t in range(6):
        lanes, mask = torch.from_numpy(q[t].T.copy()), torch.from_numpy(allowed[t].T.copy())
        expected = soft_outputs(lanes.unsqueeze(2), lanes, mask, temperature)[:, 0]
        np.testing.assert_allclose(values[t], expected, rtol=1e-5, atol=1e-6)
        settings = Munchausen(0.9, temperature, -1.0)
        expected = munchausen_bonus(lanes, torch.from_numpy(actions[t]), mask, settings)
        np.testing.assert_allclose(np.asarray(bonus)[t], expected, rtol=1e-4, atol=1e-5)


def test_diverged_values_are_not_hidden_and_no_action_at_all_is_minus_infinity() -> None:
    assert math.isnan(SOFT.state_values(np.array([[np.nan, 1.0]], np.float32))[0])
    with np.errstate(all="raise"):
        assert SOFT.state_values(np.full((1, 2), -np.inf, np.float32))[0] == -np.inf
