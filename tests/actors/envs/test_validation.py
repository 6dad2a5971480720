"""What environments may return, number by number. Shapes and dtypes are tested in test_guard.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from actors.envs.validation import Validator


@pytest.mark.parametrize(
    ("space", "values", "bad"),
    [
        (spaces.Box(-1, 1, (2,)), [[0, 9], [np.nan, 0], [0, -np.inf]], [1, 2]),
        (spaces.Box(-1, 1, (), np.float64), [0.0, 1e39, -1e308], [1, 2]),
        (spaces.Box(0, 255, (1,), np.uint8), [[0], [255], [7]], []),
        (spaces.Discrete(3), [0, 2, 3], [2]),
        (spaces.Discrete(3, start=-1), [-1, 1, -2], [2]),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [2, 0], [0, -1]], [1, 2]),
        (spaces.MultiBinary(1), [[0], [1], [1]], []),
    ],
)
def test_numbers_within_their_space(space: spaces.Space[Any], values: Any, bad: list[int]) -> None:
    batch = np.array(values, space.dtype if space.dtype is not None else None)
    assert sorted(Validator(space).problems(batch)) == bad
    nested = spaces.Tuple((spaces.Box(0, 1, (1,)), space))
    assert sorted(Validator(nested).problems((np.zeros((3, 1), np.float32), batch))) == bad


@pytest.mark.parametrize(
    ("reward", "bad"),
    [
        ([1e6, -1e30, 0.0], []),
        ([np.nan, 0.0, np.inf], [0, 2]),
        ([1e38, -1e300, 5.0], [0, 1]),
    ],
)
def test_rewards_that_float32_sums_hold(reward: list[float], bad: list[int]) -> None:
    zeros = np.zeros((3, 1), np.float32)
    with np.errstate(over="ignore"):
        assert sorted(Validator(spaces.Box(0, 1, (1,))).problems(zeros, np.array(reward))) == bad


@pytest.mark.parametrize("value", [300, -129])
def test_whole_numbers_that_the_dtype_of_their_space_would_alter(value: int) -> None:
    validator = Validator(spaces.Dict({"n": spaces.Box(-128, 127, (2,), np.int8)}))
    assert validator.misfit({"n": np.array([-128, 127])}) is None
    problem = validator.misfit({"n": np.array([7, value])})
    assert problem is not None
    assert f"'n' holds {value}, which int8, the dtype of its space, cannot hold; give the space" in problem
