"""How long a role may be silent, and the clock that stands still with its owner."""

from __future__ import annotations

import math

import pytest
from qfleet_reports import evaluation_report

from actors.core import EvaluationReport
from cluster.control.timeouts import AwakeClock, RoleTimeouts


def report(seconds: float, *lengths: int) -> EvaluationReport:
    return evaluation_report(returns=(1.0,) * len(lengths), lengths=lengths, seconds=seconds)


def test_a_clock_counts_only_what_its_owner_was_awake() -> None:
    clock = AwakeClock(100.0)
    for now in (100.25, 100.5, 160.5, 160.75):
        clock.look(now)
    # The minute in which nobody looked counts as one second.
    assert clock.seconds == pytest.approx(0.25 + 0.25 + 1.0 + 0.25)


def test_limits_are_generous_and_grow_with_what_work_takes() -> None:
    timeouts = RoleTimeouts(30.0, max_episode_steps=500)
    assert timeouts.limits()["shard"] == 30.0
    assert timeouts.limits()["learner"] == 60.0
    timeouts.answered("learner", 2.0)
    timeouts.answered("learner", 7.0)
    timeouts.answered("learner", 1.0)
    timeouts.answered("shard", 25.0)
    assert timeouts.limits()["learner"] == 140.0
    # A shard answers between two calls: nothing that it does takes long.
    assert timeouts.limits()["shard"] == 30.0


def test_a_chunk_has_a_minute_or_what_chunks_and_starts_have_taken() -> None:
    timeouts = RoleTimeouts(30.0, 500)
    assert timeouts.limits()["actor"] == 60.0
    timeouts.answered("actor", 2.0)
    timeouts.came_up("actor", 4.0)
    timeouts.came_up("learner", 900.0)
    assert timeouts.limits()["actor"] == 60.0
    timeouts.answered("actor", 4.0)
    assert timeouts.limits()["actor"] == 80.0
    # Such a simulator takes long to begin an episode.
    timeouts.came_up("actor", 30.0)
    assert timeouts.limits()["actor"] == 120.0
    given = RoleTimeouts(30.0, 500, chunk_deadline_seconds=5.0)
    given.answered("actor", 100.0)
    assert given.limits()["actor"] == 5.0


@pytest.mark.parametrize(
    ("max_episode_steps", "reports", "answered", "limit"),
    [
        (500, [], [], math.inf),
        (500, [(0.1, (10, 500))], [0.2], 120.0),
        # Played for 5 s to 180 steps: episodes of 27,000 steps would take 750 s.
        (27_000, [(5.0, (90, 180))], [5.1], 3_000.0),
        (None, [(5.0, (90, 180))], [5.1], 120.0),
        (None, [(50.0, (90, 180)), (1.0, (9, 9))], [51.0, 1.1], 1_020.0),
        (500, [(1.0, ())], [], 120.0),
    ],
)
def test_an_evaluator_has_what_full_episodes_would_take(
    max_episode_steps: int | None,
    reports: list[tuple[float, tuple[int, ...]]],
    answered: list[float],
    limit: float,
) -> None:
    timeouts = RoleTimeouts(30.0, max_episode_steps)
    for seconds, lengths in reports:
        timeouts.evaluated(report(seconds, *lengths))
    for seconds in answered:
        timeouts.answered("evaluator", seconds)
    assert timeouts.limits()["evaluator"] == pytest.approx(limit)
