"""The table of actions behind a flat Discrete space."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from actors.envs.discretize import DiscretizedActions, action_table
from actors.envs.errors import EnvError


@pytest.mark.parametrize(
    ("space", "bins", "table"),
    [
        (spaces.Box(-2.0, 2.0, (1,)), 5, [[-2], [-1], [0], [1], [2]]),
        (
            spaces.Box(np.float32([0, -1]), np.float32([1, 1])),
            2,
            [[0, -1], [0, 1], [1, -1], [1, 1]],
        ),
        (spaces.Box(0.0, 1.0, (1, 2)), 2, [[[0, 0]], [[0, 1]], [[1, 0]], [[1, 1]]]),
        (spaces.Box(0.0, 4.0, ()), 3, [0, 2, 4]),
        (spaces.Box(0, 5, (1,), np.int64), 4, [[0], [2], [3], [5]]),
        (spaces.MultiDiscrete([2, 3]), None, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]),
        (spaces.MultiDiscrete([2, 2], start=[5, -1]), 7, [[5, -1], [5, 0], [6, -1], [6, 0]]),
    ],
)
def test_tables(space: spaces.Space, bins: int | None, table: list[list[float]]) -> None:
    made = action_table(space, bins)
    assert made.dtype == space.dtype
    assert made.tolist() == table
    assert all(np.asarray(row) in space for row in made)


@pytest.mark.parametrize(
    ("space", "bins", "message"),
    [
        (
            spaces.Box(-2.0, 2.0, (1,)),
            None,
            r"continuous actions Box\(-2.0, 2.0, \(1,\), float32\); set env.discretize=5",
        ),
        (spaces.Box(-np.inf, np.inf, (1,)), 3, "unbounded actions"),
        (
            spaces.Box(-1.0, 1.0, (6,)),
            5,
            "= 15625 flat actions; at most 4096 work, set a smaller env.discretize",
        ),
        (spaces.Box(-1.0, 1.0, (40,)), 5, "at most 4096"),
        (spaces.MultiDiscrete([100, 100]), None, "100 x 100 = 10000 flat actions; at most 4096 work, wrap"),
        (spaces.Text(3), 2, "Discrete, MultiDiscrete, MultiBinary and Box actions are supported"),
    ],
)
def test_refusals(space: spaces.Space, bins: int | None, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        action_table(space, bins)


def test_4096_actions_are_the_most() -> None:
    assert len(action_table(spaces.MultiDiscrete([64, 64]), None)) == 4096
    with pytest.raises(EnvError):
        action_table(spaces.MultiDiscrete([64, 65]), None)


def test_the_wrapper_acts_by_row_number() -> None:
    env = DiscretizedActions(gym.make("Pendulum-v1"), 3)
    assert env.action_space == spaces.Discrete(3)
    assert [env.action(i).tolist() for i in range(3)] == [[-2.0], [0.0], [2.0]]
    env.action(0)[:] = 7.0  # an environment that changes its action must not change the table
    assert env.action(0).tolist() == [-2.0]
    env.close()
