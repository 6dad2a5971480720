"""Single values that the settings of environments and actors refuse, and what the message says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from actors.config import ActorsConfig, EnvConfig, LadderConfig


@pytest.mark.parametrize(
    ("make", "name", "values", "message"),
    [
        (EnvConfig, "id", [""], "empty; give a Gymnasium id or package.module:factory"),
        (EnvConfig, "stack", [0, 65], "give 1 to 64 frames"),
        (EnvConfig, "discretize", [1], "give at least 2 bins a dimension"),
        (EnvConfig, "max_episode_steps", [0], "give at least 1"),
        (LadderConfig, "base", [0.0, 1.1], r"give a number in \(0, 1\]"),
        (LadderConfig, "alpha", [-1.0], "give 0 or more"),
        (ActorsConfig, "num_actors", [0], "give at least 1"),
        (ActorsConfig, "min_actors", [0], "give at least 1"),
        (ActorsConfig, "envs_per_actor", [0], "give at least 1"),
        (ActorsConfig, "steps_per_chunk", [0], "give at least 1"),
        (ActorsConfig, "epsilon_start", [-0.1, 1.1], r"a probability lies in \[0, 1\]"),
        (ActorsConfig, "epsilon_end", [-0.1, 1.1], r"a probability lies in \[0, 1\]"),
        (ActorsConfig, "epsilon_decay_env_steps", [0], "give at least 1"),
        (ActorsConfig, "n_step", [0, 65], "give 1 to 64"),
        (ActorsConfig, "discount", [-0.1, 1.1], r"gamma lies in \[0, 1\]"),
        (
            ActorsConfig,
            "reward_clip",
            [0.0, -1.0, float("nan")],
            "give a number above 0, or null for raw rewards",
        ),
        (ActorsConfig, "pushes_in_flight", [0], "give at least 1"),
        (ActorsConfig, "env_restarts", [-1], "give 0 or more"),
        (ActorsConfig, "chunk_deadline_seconds", [0.0], "it must be above 0, or null"),
        (ActorsConfig, "memory_limit_bytes", [0], "it must be above 0, or null"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    make: Callable[..., Any], name: str, values: list[Any], message: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"\.{name} is .*{message}"):
            make(**{name: value})


def test_the_ends_of_each_range_are_allowed() -> None:
    EnvConfig(stack=64, discretize=2, max_episode_steps=1)
    LadderConfig(base=1.0, alpha=0.0)
    ActorsConfig(num_actors=1, epsilon_start=0.0, epsilon_end=1.0, n_step=64, discount=1.0, env_restarts=0)
