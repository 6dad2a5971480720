"""Settings of the replay service: bad values are refused by name."""

from __future__ import annotations

import pytest

from replay_service.config import ReplayConfig


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("capacity", 0, "give at least 1"),
        ("num_shards", 0, "give at least 1"),
        ("importance_anneal_updates", 0, "give at least 1"),
        ("minibatches_per_request", 0, "give at least 1"),
        ("priority_exponent", 1.5, "give a number from 0 to 1"),
        ("importance_exponent_start", -0.1, "give a number from 0 to 1"),
        ("priority_epsilon", 0.0, "it must be above 0"),
        ("prefetch_requests", -1, "give 0 or more"),
    ],
)
def test_a_bad_value_is_named(name: str, value: float, advice: str) -> None:
    with pytest.raises(ValueError, match=rf"replay\.{name} is {value}; {advice}"):
        ReplayConfig(**{name: value})
