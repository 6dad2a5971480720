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


HUGE = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("space", "values", "beyond"),
    [
        (spaces.Box(0, 1, (2,)), [[0, 1], [0.5, 2], [-3, 9]], 2),
        (spaces.Box(0, 1, (2,)), [[0, 1 + 1e-6], [-1e-6, 0.5]], 0),  # rounding
        (spaces.Box(-np.inf, np.inf, (1,)), [[1e30], [-1e30]], 0),
        (spaces.Box(-HUGE, HUGE, (1,)), [[HUGE], [-HUGE]], 0),
        (spaces.Box(0, 3, (1,), np.uint8), [[3], [4], [255]], 2),
        (spaces.Box(0, 255, (1,), np.uint8), [[0], [255]], 0),
        (spaces.Box(-1, 1, (), np.float64), [1.5, 0.0], 1),
        (spaces.MultiBinary(1), [[0], [1]], 0),
        (spaces.Discrete(3), [0, 2], 0),
    ],
)
def test_observations_beyond_their_bounds_are_counted(
    space: spaces.Space[Any], values: Any, beyond: int
) -> None:
    batch = np.array(values, space.dtype)
    report = Validator(space).bounds(batch)
    assert (report.looked_at, report.beyond, bool(report.example)) == (len(batch), beyond, beyond > 0)
    nested = spaces.Dict({"a": spaces.Box(0, 1, (1,)), "b": space})
    parts = {"a": np.full((len(batch), 1), 2.0, np.float32), "b": batch}
    both = Validator(nested).bounds(parts)
    assert (both.looked_at, both.beyond) == (len(batch), len(batch))


def test_a_report_of_bounds_says_how_many_and_which() -> None:
    validator = Validator(spaces.Dict({"x": spaces.Box(-1, 1, (2,))}))
    report = validator.bounds({"x": np.array([[0, 0.5], [0, 3.5]], np.float32)})
    assert (report + report).text == (
        "2 of 4 observations looked at leave the bounds of their space: an observation whose 'x' holds 3.5, "
        "beyond its bounds -1 and 1; they are learned from as they are"
    )
