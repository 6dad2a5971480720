"""How long a role may be silent, and the clock that stands still with its owner."""

from __future__ import annotations

import pytest

from cluster.control.timeouts import AwakeClock, RoleTimeouts, chunk_seconds


def test_a_clock_counts_only_what_its_owner_was_awake() -> None:
    clock = AwakeClock(100.0)
    for now in (100.25, 100.5, 160.5, 160.75):
        clock.look(now)
    # The minute in which nobody looked counts as one second.
    assert clock.seconds == pytest.approx(0.25 + 0.25 + 1.0 + 0.25)


def test_chunks_are_short_against_every_limit() -> None:
    assert chunk_seconds(30.0, None) == 2.0
    assert chunk_seconds(4.0, None) == 1.0
    assert chunk_seconds(30.0, 4.0) == 1.0


def proven() -> RoleTimeouts:
    """Timeouts once every kind of role has answered a first chunk of work, in no time."""
    timeouts = RoleTimeouts(30.0)
    for role in ("actor", "learner", "evaluator"):
        timeouts.answered(role, 0.0, worked=True)
    return timeouts


def test_limits_are_generous_and_grow_with_what_work_takes() -> None:
    timeouts = proven()
    assert timeouts.limits() == {"shard": 30.0, "learner": 60.0, "evaluator": 120.0, "actor": 60.0}
    assert timeouts.slow_work_seconds() == 0.0
    for role in ("learner", "evaluator"):
        for seconds in (2.0, 7.0, 1.0):
            timeouts.answered(role, seconds, worked=True)
    timeouts.answered("shard", 25.0, worked=False)
    # A shard answers between two calls: nothing that it does takes long.
    assert timeouts.limits() == {"shard": 30.0, "learner": 140.0, "evaluator": 140.0, "actor": 60.0}
    assert timeouts.slow_work_seconds() == 14.0
    timeouts.came_up("actor", 40.0)
    assert timeouts.slow_work_seconds() == 80.0


def test_first_chunks_may_take_long_because_nothing_is_known_about_them() -> None:
    timeouts = RoleTimeouts(30.0)
    assert timeouts.usual_limits() == proven().limits()
    assert timeouts.limits() == {"shard": 30.0, "learner": 600.0, "evaluator": 600.0, "actor": 600.0}
    # A restored learner has answered, but done no update yet.
    timeouts.answered("learner", 1.0, worked=False)
    assert timeouts.limits()["learner"] == timeouts.slow_work_seconds() == 600.0
    timeouts.answered("learner", 1.0, worked=True)
    assert timeouts.limits()["learner"] == 60.0
    assert timeouts.slow_work_seconds() == 600.0
    timeouts.answered("actor", 1.0, worked=True)
    assert timeouts.slow_work_seconds() == 2.0
    # Whoever gives a deadline means the first chunk, too.
    assert RoleTimeouts(30.0, chunk_deadline_seconds=5.0).limits()["actor"] == 5.0


def test_a_chunk_has_a_minute_or_what_chunks_and_starts_have_taken() -> None:
    timeouts = proven()
    assert timeouts.limits()["actor"] == 60.0
    timeouts.answered("actor", 2.0, worked=True)
    timeouts.came_up("actor", 4.0)
    timeouts.came_up("learner", 900.0)
    assert timeouts.limits()["actor"] == 60.0
    timeouts.answered("actor", 4.0, worked=True)
    assert timeouts.limits()["actor"] == 80.0
    # Such a simulator takes long to begin an episode; and the evaluator may make more of them.
    timeouts.came_up("actor", 30.0)
    assert timeouts.limits()["actor"] == 120.0
    assert timeouts.limits()["evaluator"] == 600.0
    timeouts.answered("evaluator", 2.0, worked=True)
    assert timeouts.limits()["evaluator"] == 120.0
    given = RoleTimeouts(30.0, chunk_deadline_seconds=5.0)
    given.answered("actor", 100.0, worked=True)
    assert given.limits()["actor"] == 5.0


def test_compiling_takes_minutes() -> None:
    timeouts = RoleTimeouts(30.0, compiles=True)
    for role in ("actor", "learner"):
        timeouts.answered(role, 1.0, worked=True)
    assert timeouts.limits()["learner"] == timeouts.slow_work_seconds() == 600.0
