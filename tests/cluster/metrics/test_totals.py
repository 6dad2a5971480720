"""Totals over shards: never backwards, whatever order replies arrive in."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from qfleet_reports import shard_status

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
