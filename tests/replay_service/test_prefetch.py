"""How far ahead a learner draws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.prefetch import REQUEST_SECONDS, Prefetch, choose_prefetch

MOST = Prefetch(250, 4)


@pytest.mark.parametrize(
    ("current", "update_seconds", "reply_seconds", "expected"),
    [
        (Prefetch(4, 2), 0.5e-3, 1e-3, Prefetch(200, 2)),  # a small network: answers of 50 ms
        (Prefetch(200, 2), 0.5e-3, 150e-3, Prefetch(200, 3)),  # slow answers: more in flight
        (Prefetch(200, 2), 0.5e-3, 1.0, Prefetch(200, 4)),  # as many as there may be
        (Prefetch(10, 2), 30e-3, 3e-3, Prefetch(3, 2)),  # convolutions: a few
        (Prefetch(4, 2), 1.0, 3e-3, Prefetch(1, 2)),  # one by one
        (Prefetch(4, 2), 1e-6, 1e-3, Prefetch(250, 4)),  # nothing to learn: the limits
        (Prefetch(60, 2), 1e-3, 1e-3, Prefetch(60, 2)),  # 100 would be no factor of 2
        (Prefetch(60, 3), 1e-3, None, Prefetch(60, 3)),  # nobody waits
        (Prefetch(60, 3), 0.5e-3, None, Prefetch(200, 3)),
    ],
)
def test_examples(
    current: Prefetch, update_seconds: float, reply_seconds: float | None, expected: Prefetch
) -> None:
    chosen = choose_prefetch(current, MOST, update_seconds=update_seconds, reply_seconds=reply_seconds)
    assert chosen == expected


@given(
    current=st.builds(Prefetch, st.integers(1, 64), st.integers(1, 4)),
    most=st.builds(Prefetch, st.integers(1, 64), st.integers(1, 4)),
    update_seconds=st.floats(1e-6, 10.0),
    reply_seconds=st.none() | st.floats(1e-6, 10.0),
)
def test_a_choice_lies_within_the_limits_and_stays(
    current: Prefetch, most: Prefetch, update_seconds: float, reply_seconds: float | None
) -> None:
    current = Prefetch(min(current.minibatches, most.minibatches), min(current.requests, most.requests))
    chosen = choose_prefetch(current, most, update_seconds=update_seconds, reply_seconds=reply_seconds)
    assert 1 <= chosen.minibatches <= most.minibatches
    assert 1 <= chosen.requests <= most.requests
    again = choose_prefetch(chosen, most, update_seconds=update_seconds, reply_seconds=reply_seconds)
    assert again.minibatches == chosen.minibatches
    if chosen.minibatches != current.minibatches:
        assert chosen.minibatches * update_seconds <= 1.5 * REQUEST_SECONDS or chosen.minibatches == 1
