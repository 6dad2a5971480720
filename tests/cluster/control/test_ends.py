"""The ends of a run, and the clock of stop.seconds."""

from __future__ import annotations

import pytest

from cluster.control.ends import ActingClock, is_own_end, limit_reached, target_reached
from cluster.settings.resolved import ResolvedStop


@pytest.mark.parametrize(
    ("stop", "reached"),
    [
        (ResolvedStop(), None),
        (ResolvedStop(env_steps=11, updates=6, seconds=4.5), None),
        (ResolvedStop(env_steps=10), "stop.env_steps = 10 reached"),
        (ResolvedStop(updates=5), "stop.updates = 5 reached"),
        (ResolvedStop(seconds=4.0), "stop.seconds = 4 reached"),
    ],
)
def test_the_first_limit_ends_a_run(stop: ResolvedStop, reached: str | None) -> None:
    assert limit_reached(stop, env_steps=10, updates=5, seconds=4.0) == reached
    assert reached is None or is_own_end(reached)


def test_a_signal_is_no_end_of_its_own() -> None:
    assert is_own_end(target_reached(ResolvedStop(target_return=475.0)))
    assert not is_own_end("stopped by SIGTERM")


def test_start_ups_do_not_count() -> None:
    clock = ActingClock()
    assert clock.seconds(100.0) == 0.0
    clock.began = 103.0
    assert clock.seconds(113.0) == 10.0
    again = ActingClock()
    again.resume(clock.seconds(113.0))
    assert again.seconds(500.0) == 10.0
    again.began = 501.0
    assert again.seconds(503.0) == 12.0
