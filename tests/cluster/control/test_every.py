"""A clock for what is done every so many seconds: when it is due, and from when it counts."""

from __future__ import annotations

from cluster.control.every import Every


def test_it_is_due_once_in_each_period() -> None:
    every = Every(10.0, now=100.0)
    moments = (100.0, 109.9, 110.0, 110.1, 119.9, 120.0)
    assert [now for now in moments if every.due(now)] == [110.0, 120.0]


def test_a_late_look_does_not_catch_up() -> None:
    every = Every(10.0, now=0.0)
    # Three periods have passed. It is due once, and then 10 seconds after this look.
    assert every.due(35.0)
    assert not every.due(44.9)
    assert every.due(45.0)


def test_with_no_seconds_between_it_is_always_due() -> None:
    every = Every(0.0, now=5.0)
    assert [every.due(5.0) for _ in range(3)] == [True, True, True]
