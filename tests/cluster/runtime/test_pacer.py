"""How much acting and learning may be granted, worked out by hand.

Learning starts after 64 transitions and takes 4 samples per insert. A rollout chunk has 8 * 4 = 32
transitions; a learning chunk has 4 updates of 16.
"""

from __future__ import annotations

import pytest
from qfleet_by_hand import ByHand
from qfleet_reports import learn_report, shard_status

from cluster.control.pacing import Ledger
from cluster.runtime.pacer import Pacer
from cluster.runtime.roles import ActorRole, LearnerRole


def inserted(run: ByHand, transitions: int, *, held: int | None = None) -> None:
    """The shard has taken this many transitions, and holds them all or `held`."""
    count = transitions if held is None else held
    status = shard_status(count=count, inserted_transitions_total=transitions, env_steps_total=transitions)
    run.context.counters.shards.take([status])


def learned(run: ByHand, updates: int, version: int) -> None:
    """A chunk of updates is reported."""
    report = learn_report(version=version, updates=updates, statuses=())
    run.context.counters.take_learning(report, 16)


def grant_learning(run: ByHand, updates: int) -> None:
    run.fleet.grant_learner(
        LearnerRole.learn, updates,
        then=lambda *_: None, kind="learn", transitions=16 * updates,
    )  # fmt: skip


def grant_rollout(run: ByHand) -> None:
    run.fleet.grant(run.fleet.actors[0], ActorRole.rollout, 8, 0, None, 0, kind="rollout", transitions=32)


def granted_updates(run: ByHand, pacer: Pacer) -> list[int]:
    """The learning chunks that may be granted one after another."""
    chunks = []
    while updates := pacer.next_updates():
        chunks.append(updates)
        grant_learning(run, updates)
    return chunks


@pytest.mark.parametrize(
    ("transitions", "chunks"),
    [
        (63, []),  # fewer than learning_starts
        (79, []),  # 4 * 15 = 60 samples are owed, a chunk takes 64
        (80, [4]),  # 64 samples
        (95, [4]),  # 124
        (96, [4, 4]),  # 128
        (1000, [4, 4]),  # more would wait at the learner
    ],
)
def test_a_chunk_is_granted_once_all_its_samples_are_owed(transitions: int, chunks: list[int]) -> None:
    run = ByHand()
    inserted(run, transitions)
    assert granted_updates(run, Pacer(run.context)) == chunks


def test_the_last_chunk_ends_at_stop_updates() -> None:
    run = ByHand("stop.updates=10")
    pacer = Pacer(run.context)
    inserted(run, 1000)
    learned(run, 4, version=4)
    assert granted_updates(run, pacer) == [4, 2]
    run.answer("learner", "learn")
    learned(run, 4, version=8)
    assert pacer.next_updates() == 0  # the two that are left are granted already
    run.answer("learner", "learn")
    learned(run, 2, version=10)
    assert pacer.next_updates() == 0


@pytest.mark.parametrize(("deterministic", "chunks"), [(True, [4, 2, 4, 2]), (False, [4, 4, 4, 4])])
def test_a_chunk_ends_where_a_checkpoint_is_due_if_all_is_deterministic(
    deterministic: bool, chunks: list[int]
) -> None:
    run = ByHand("checkpoint.every_updates=6", deterministic=deterministic)
    pacer = Pacer(run.context)
    inserted(run, 1000)
    given = []
    for _ in chunks:
        given.append(pacer.next_updates())
        learned(run, given[-1], version=sum(given))
    assert given == chunks


def test_where_calls_run_when_they_are_made_one_credit_is_enough() -> None:
    run = ByHand(deterministic=True)
    inserted(run, 1000)
    assert granted_updates(run, Pacer(run.context)) == [4]


@pytest.mark.parametrize("ratio", [1, 16])
def test_a_changed_ratio_holds_from_here_on(ratio: int) -> None:
    run = ByHand(f"pacing.samples_per_insert={ratio}")
    inserted(run, 464)
    learned(run, 100, 100)  # 1,600 samples: 4 per insert
    pacer = Pacer(run.context)
    pacer.begin_here()
    assert granted_updates(run, pacer) == []
    inserted(run, 464 + 64 // ratio)
    assert granted_updates(run, pacer) == [4]
    # A checkpoint keeps it.
    assert Pacer(run.context).pacing.origin == run.context.counters.state().pacing_origin


def test_acting_may_run_ahead_by_its_slack_and_no_further() -> None:
    # Two actors with 2 credits and 2 pushes each make 2 * 4 * 32 = 256 transitions, worth 1,024 samples;
    # two learning chunks are 128 more: 1,152 samples are 288 transitions.
    run = ByHand("actors.pushes_in_flight=2")
    pacer = Pacer(run.context)
    assert pacer.chunk_transitions == 32
    inserted(run, 64 + 288 - 32)
    assert pacer.may_act()
    inserted(run, 64 + 288 - 31)
    assert not pacer.may_act()
    learned(run, 1, version=1)
    assert pacer.may_act()


def test_credits_in_flight_count_as_if_they_were_inserted_and_sampled() -> None:
    run = ByHand("actors.pushes_in_flight=2")
    pacer = Pacer(run.context)
    inserted(run, 64 + 288 - 32)
    learned(run, 3, version=3)
    grant_rollout(run)
    grant_learning(run, 2)
    run.fleet.credits.take_unacknowledged(run.fleet.actors[1], 5)
    assert pacer.ledger() == Ledger(inserted=320, inserting=37, sampled=48, sampling=32)
    # 3 updates consumed 48 samples, which are 12 transitions: 288 + 12 are too few for 288 + 37.
    assert not pacer.may_act()


def test_acting_fills_a_lost_shard_although_it_is_far_ahead() -> None:
    run = ByHand()
    pacer = Pacer(run.context)
    inserted(run, 10_000, held=16)
    assert (pacer.may_act(), pacer.next_updates()) == (False, 4)
    inserted(run, 10_000, held=15)  # a batch of 16 would repeat one
    assert (pacer.may_act(), pacer.next_updates()) == (True, 0)
    grant_rollout(run)  # it brings enough
    assert not pacer.may_act()


def test_what_a_dead_shard_held_cannot_be_sampled() -> None:
    run = ByHand()
    pacer = Pacer(run.context)
    inserted(run, 10_000)
    run.die(run.fleet.shards[0])
    assert (pacer.may_act(), pacer.next_updates()) == (True, 0)
    back = shard_status(incarnation=1, count=5_000, inserted_transitions_total=0, env_steps_total=0)
    run.context.counters.shards.take([back])
    assert (pacer.may_act(), pacer.next_updates()) == (False, 4)
