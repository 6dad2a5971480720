"""Totals over shards: never backwards, whatever order replies arrive in."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from qfleet_reports import shard_metrics, shard_status

from cluster.metrics.totals import ShardTotals
from replay_service.messages import ShardStatus


def status(shard: int, inserted: int, *, sampled: int = 0, incarnation: int = 0) -> ShardStatus:
    return shard_status(
        shard=shard,
        incarnation=incarnation,
        count=min(inserted, 50),
        inserted_transitions_total=inserted,
        env_steps_total=2 * inserted,
        sampled_transitions_total=sampled,
    )


def test_sums_over_shards_and_incarnations() -> None:
    totals = ShardTotals()
    assert (totals.inserted_transitions, totals.env_steps, totals.living()) == (0, 0, ())
    totals.take([status(1, 30), status(0, 10), status(1, 5, incarnation=1)])
    assert totals.inserted_transitions == 45
    assert totals.env_steps == 90
    assert totals.living() == (status(0, 10), status(1, 5, incarnation=1))


def test_a_status_of_a_dead_incarnation_that_comes_late_changes_no_living_one() -> None:
    totals = ShardTotals()
    totals.take([status(0, 5, incarnation=1)])
    totals.take([status(0, 80, incarnation=0)])
    assert totals.inserted_transitions == 85
    assert totals.living() == (status(0, 5, incarnation=1),)


def test_equal_inserts_are_ordered_by_what_else_grows() -> None:
    totals = ShardTotals()
    totals.take([status(0, 10, sampled=7)])
    totals.take([status(0, 10, sampled=3)])
    assert totals.living()[0].sampled_transitions_total == 7


histories = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=40
).map(lambda facts: [status(shard, 10 * count, incarnation=life) for shard, life, count in facts])


@given(history=histories)
def test_totals_never_go_backwards_and_do_not_depend_on_the_order(history: list[ShardStatus]) -> None:
    totals, shown = ShardTotals(), (0, 0)
    for item in history:
        totals.take([item])
        now = (totals.inserted_transitions, totals.env_steps)
        assert now >= shown
        assert now[1] >= shown[1]
        shown = now
    backwards = ShardTotals()
    backwards.take(reversed(history))
    assert (backwards.inserted_transitions, backwards.env_steps) == shown
    assert backwards.living() == totals.living()


def test_what_a_journal_brings_back_is_counted_once() -> None:
    totals = ShardTotals()
    totals.take([status(0, 90)])
    # The journal knows 10 transitions more than the last status told.
    back = replace(status(0, 0, incarnation=1), earlier_transitions_total=100, earlier_env_steps_total=200)
    totals.take([back])
    assert (totals.inserted_transitions, totals.env_steps) == (100, 200)
    totals.take([replace(back, inserted_transitions_total=5, env_steps_total=10)])
    assert (totals.inserted_transitions, totals.env_steps) == (105, 210)
    # Here it ends before what was shown already, as after a full disk: nothing goes backwards.
    totals.take(
        [replace(status(0, 0, incarnation=2), earlier_transitions_total=60, earlier_env_steps_total=120)]
    )
    assert (totals.inserted_transitions, totals.env_steps) == (105, 210)
    totals.take(
        [replace(status(0, 3, incarnation=2), earlier_transitions_total=60, earlier_env_steps_total=120)]
    )
    assert (totals.inserted_transitions, totals.env_steps) == (108, 216)


def test_metrics_of_the_living_and_totals_over_all() -> None:
    totals = ShardTotals()
    first = shard_metrics(priorities=None)
    totals.take([shard_status(metrics=first), shard_status(shard=1, count=0, mass=0.0)])
    totals.take([shard_status(incarnation=1, inserted_transitions_total=50, metrics=shard_metrics())])
    assert totals.living_metrics() == {0: shard_metrics()}
    assert totals.seconds() == {"insert": 2.0, "sample": 4.0, "update": 1.0}
    metrics = totals.metrics()
    assert (metrics["replay_transitions"], metrics["replay_bytes"]) == (100, 18_000)
    assert (metrics["drawn_transitions_total"], metrics["evicted_transitions_total"]) == (1_800, 150)
    assert (metrics["late_priorities_total"], metrics["repeated_pushes_total"]) == (6, 2)
    assert (metrics["pushed_bytes_total"], metrics["sampled_bytes_total"]) == (2_000, 10_000)
    assert metrics["sample_age_transitions"] == first.sample_age + first.sample_age
    assert metrics["evicted_draws"] == first.evicted_draws + first.evicted_draws
    # Of 5 transitions 2 were never drawn; (0 + 0 + 1 + 1 + 2)^2 / (5 * (1 + 1 + 4)).
    assert metrics["evicted_undrawn_share"] == 2 / 5
    assert metrics["evicted_draws_effective_ratio"] == 16 / 30
    assert metrics["reuse_mean"] == 1_200 / 200
    assert (metrics["shard_transitions"], metrics["shard_mass"]) == (
        {"0": 100, "1": 0},
        {"0": 50.0, "1": 0.0},
    )
    assert (metrics["shard_bytes"], metrics["shard_capacity_transitions"]) == (
        {"0": 9_000, "1": 9_000},
        {"0": 200},
    )
    # Only a shard that holds something has priorities.
    assert (metrics["shard_priority_min"], metrics["shard_priority_max"]) == ({"0": 0.1}, {"0": 2.0})
    assert metrics["shard_priority_effective_ratio"] == {"0": 0.5}
