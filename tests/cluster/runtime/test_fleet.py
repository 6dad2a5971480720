"""The fleet over roles that do nothing: credits, replacements, introductions, and what is in flight.

Tests cluster/runtime/member.py, too.
"""

from __future__ import annotations

from typing import Any

import pytest
from qfleet_by_hand import UP, ByHand
from qfleet_reports import learn_report, shard_status

from cluster.engines.engine import EngineError, Ref, RoleDied
from cluster.engines.placement import role_name
from cluster.engines.process_info import ProcessInfo, process_info
from cluster.runtime.failure import RunFailed
from cluster.runtime.fleet import Fleet
from cluster.runtime.roles import ActorRole, LearnerRole
from learner.core import LearnReport, Meeting
from replay_service.messages import ShardStatus


class Continuation:
    """What became of a call: the values that it brought, and why it brought none."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.errors: list[EngineError] = []

    def then(self, *values: Any) -> None:
        self.values.append(values)

    def lost(self, error: EngineError) -> None:
        self.errors.append(error)


def grant_rollout(fleet: Fleet, end: Continuation, *, actor: int = 0) -> None:
    """A chunk of 32 transitions."""
    fleet.grant(
        fleet.actors[actor], ActorRole.rollout, 8, 0, None, 0,
        then=end.then, lost=end.lost, kind="rollout", transitions=32,
    )  # fmt: skip


def test_all_roles_are_spawned_at_once_and_the_learner_before_the_actors() -> None:
    run = ByHand("replay.num_shards=2")
    assert run.engine.spawned == ["shard 0", "shard 1", "learner", "actor 0", "actor 1", "evaluator"]
    assert [member.name for member in run.fleet.members] == run.engine.spawned
    assert not any(member.is_up for member in run.fleet.members)
    run.come_up()
    assert all(member.is_up for member in run.fleet.members)
    assert run.fleet.starts == 6
    names = [role_name("shard", 1), role_name("learner", 0), role_name("learner", 2)]
    assert names == ["shard 1", "learner", "learner rank 2"]


def test_a_credit_that_is_settled_has_its_value_and_is_not_lost() -> None:
    run, end = ByHand(), Continuation()
    run.come_up()
    grant_rollout(run.fleet, end)
    assert len(run.fleet.actors[0].in_flight) == 1
    run.answer("actor 0", "rollout", "report")
    assert run.fleet.actors[0].in_flight == set()
    run.die(run.fleet.actors[0])
    assert (end.values, end.errors) == ([("report",)], [])


def test_a_credit_of_a_role_that_dies_is_lost_and_brings_no_value() -> None:
    run, end = ByHand(), Continuation()
    run.come_up()
    grant_rollout(run.fleet, end)
    late = run.call("actor 0", "rollout")
    dead, error = run.fleet.actors[0], RoleDied("actor 0", "gone")
    fresh = run.die(dead, error)
    # Its answer may have been on the way: it finds no credit any more.
    assert run.fleet.settle(late) is None
    assert (end.values, end.errors) == ([], [error])
    assert run.engine.killed == ["actor 0"]
    assert run.fleet.actors == [fresh, run.fleet.actors[1]]
    assert (fresh.incarnation, fresh.is_up, fresh.unacknowledged_transitions) == (1, False, 0)


def test_a_dead_roles_credits_are_refunded_and_the_others_stay() -> None:
    run, end = ByHand(), Continuation()
    run.come_up()
    for actor in (0, 0, 1):
        grant_rollout(run.fleet, end, actor=actor)
    run.fleet.credits.take_unacknowledged(run.fleet.actors[0], 100)
    run.fleet.credits.take_unacknowledged(run.fleet.actors[1], 7)
    assert run.fleet.credits.inserting == 3 * 32 + 107
    run.die(run.fleet.actors[0])
    assert run.fleet.credits.inserting == 32 + 7
    assert len(end.errors) == 2


@pytest.mark.parametrize("name", ["shard 1", "learner", "actor 1", "evaluator"])
def test_a_replacement_takes_the_place_of_its_kind(name: str) -> None:
    run = ByHand("replay.num_shards=2")
    run.come_up()
    place = [member.name for member in run.fleet.members].index(name)
    others = [member for member in run.fleet.members if member.name != name]
    fresh = run.die(run.fleet.members[place])
    assert run.fleet.members[place] is fresh
    assert [member for member in run.fleet.members if member.name != name] == others
    assert (fresh.name, fresh.incarnation) == (name, 1)
    assert run.engine.spawned[6:] == [name]


def test_a_pair_gives_the_value_and_a_ref_for_the_weights() -> None:
    run, taken = ByHand(), []
    run.come_up()

    def take(report: LearnReport, weights: Ref[Any]) -> None:
        taken.append((report, weights))

    run.fleet.grant_learner(LearnerRole.learn, 4, then=take, kind="learn", transitions=64)
    assert run.fleet.credits.sampling == 64
    call = run.call("learner", "learn")
    given = learn_report()
    run.answer("learner", "learn", given)
    ((report, weights),) = taken
    assert report is given
    assert weights is not call
    assert run.fleet.credits.sampling == 0


def test_the_ranks_of_a_learner_meet_before_they_learn_and_are_one() -> None:
    run, taken, others = ByHand("learner.num_learners=3"), [], []
    assert run.engine.spawned[1:4] == ["learner", "learner rank 1", "learner rank 2"]
    assert [rank.incarnation for rank in run.fleet.ranks] == [0, 0, 0]
    for name in ("learner", "learner rank 2", "learner rank 1"):
        assert not run.is_asked("learner", "open_meeting")
        run.answer(name, "process_info", UP)
    assert not run.fleet.learner_is_ready
    meeting = Meeting("10.0.0.1", 5)
    run.answer("learner", "open_meeting", meeting)
    assert run.fleet.learner_is_ready
    told = [(call.role, call.args) for call in run.asked if call.method == "meet"]
    assert told == [(rank.name, (meeting,)) for rank in run.fleet.ranks]

    run.fleet.grant_learner(
        LearnerRole.learn, 4,
        then=lambda report, _: taken.append(report), others=others.append, kind="learn", transitions=64,
    )  # fmt: skip
    assert [call.role for call in run.asked if call.method == "learn"] == [
        rank.name for rank in run.fleet.ranks
    ]
    # One chunk, however many learn.
    assert (run.fleet.credits.sampling, run.fleet.metrics().credits["learn"]) == (64, 1)
    first, second = learn_report(rank=0), learn_report(rank=1)
    run.answer("learner rank 1", "learn", second)
    run.answer("learner", "learn", first)
    assert (taken, others) == ([first], [second])
    assert run.fleet.metrics().wanted["learner"] == 3


def test_a_rank_that_dies_takes_the_others_along() -> None:
    run, end = ByHand("learner.num_learners=2"), Continuation()
    run.come_up()
    run.answer("learner", "open_meeting", Meeting("10.0.0.1", 5))
    run.fleet.grant_learner(LearnerRole.learn, 4, then=end.then, kind="learn", transitions=64)
    run.fleet.grant(run.fleet.learner, LearnerRole.state, lost=end.lost)
    fresh = run.die(run.fleet.ranks[1])
    assert run.engine.killed == ["learner", "learner rank 1"]
    assert run.engine.spawned[-2:] == ["learner", "learner rank 1"]
    assert fresh is run.fleet.learner
    assert [rank.incarnation for rank in run.fleet.ranks] == [1, 1]
    assert run.notes.incarnations[-1] == {"learner": 1, "learner rank 1": 1}
    assert not run.fleet.learner_is_ready
    assert (run.fleet.credits.sampling, end.values, len(end.errors)) == (0, [], 1)
    # Only the new ones are asked to start.
    assert {call.method for call in run.asked if call.role.startswith("learner")} == {"process_info"}


def test_a_new_shard_is_introduced_to_every_rank() -> None:
    run = ByHand("learner.num_learners=2", "replay.num_shards=2")
    run.come_up()
    run.fleet.announce_shard(run.die(run.fleet.shards[1]))
    told = [call.role for call in run.asked if call.method == "replace_shard"]
    assert told == ["learner", "learner rank 1", "actor 0", "actor 1"]


def test_counts_are_of_one_kind_and_one_member() -> None:
    run, end = ByHand(), Continuation()
    run.come_up()
    for actor in (0, 1, 1):
        grant_rollout(run.fleet, end, actor=actor)
    run.fleet.grant(run.fleet.actors[1], ActorRole.set_rank, 1, 2)
    fleet = run.fleet
    assert [fleet.granted(actor, "rollout") for actor in fleet.actors] == [1, 2]
    assert fleet.granted(fleet.actors[1], "other") == 1
    assert fleet.granted(fleet.learner, "learn") == 0
    assert (fleet.credits.inserting, fleet.credits.sampling) == (96, 0)
    metrics = fleet.metrics()
    assert metrics.credits == {"rollout": 3, "learn": 0, "evaluate": 0}
    assert metrics.wanted == metrics.up == {"shard": 1, "learner": 1, "actor": 2, "evaluator": 1}
    run.die(fleet.learner)
    assert fleet.metrics().up == {"shard": 1, "learner": 0, "actor": 2, "evaluator": 1}


def test_actors_with_room_for_a_credit_are_known_and_the_longest_waiting_comes_first() -> None:
    run, end = ByHand("actors.num_actors=3"), Continuation()

    def short() -> list[int]:
        return [actor.index for actor in run.fleet.credits.short_actors]

    for name in ("actor 2", "actor 0"):
        run.answer(name, "process_info", UP)
    assert short() == [2, 0]
    for actor in (2, 2, 0):
        grant_rollout(run.fleet, end, actor=actor)
    assert short() == [0]
    run.answer("actor 2", "rollout", "report")
    assert short() == [0, 2]
    # Other calls take no place, and a role that is replaced has none until it is up again.
    run.fleet.grant(run.fleet.actors[0], ActorRole.set_rank, 0, 2)
    run.die(run.fleet.actors[2])
    assert short() == [0]
    run.answer("actor 2", "process_info", UP)
    assert short() == [0, 2]
    run.answer("actor 0", "set_rank")
    run.answer("actor 0", "rollout", "report")
    assert (short(), run.fleet.actors[0].chunks) == ([0, 2], 0)


def test_a_new_shard_is_introduced_to_everybody_who_calls_shards() -> None:
    run = ByHand("replay.num_shards=2")
    run.come_up()
    shard = run.die(run.fleet.shards[1])
    run.answer("shard 1", "process_info", UP)
    run.fleet.announce_shard(shard)
    told = [call for call in run.asked if call.method == "replace_shard"]
    assert [call.role for call in told] == ["learner", "actor 0", "actor 1"]
    assert all(call.args == (1, shard.handle) for call in told)
    # An actor answers how much is not acknowledged now.
    run.answer("actor 1", "replace_shard", 64)
    assert run.fleet.credits.inserting == 64


def test_idle_shards_are_asked_for_their_status_and_busy_ones_are_not() -> None:
    run, statuses = ByHand("replay.num_shards=2"), list[ShardStatus]()
    run.fleet.ask_shards(statuses.extend)
    assert not run.is_asked("shard 0", "status")  # it is not up
    run.come_up()
    run.fleet.ask_shards(statuses.extend)
    run.answer("shard 1", "status", shard_status(shard=1))
    run.fleet.ask_shards(statuses.extend)
    asked = [call.role for call in run.asked if call.method == "status"]
    assert asked == ["shard 0", "shard 1"]
    assert statuses == [shard_status(shard=1)]


def test_an_idle_actor_is_asked_what_is_not_acknowledged_yet() -> None:
    run, taken = ByHand(), list[ShardStatus]()
    run.come_up()
    run.fleet.credits.take_unacknowledged(run.fleet.actors[1], 64)
    run.fleet.ask_idle_actors(taken.extend)
    run.fleet.ask_idle_actors(taken.extend)
    assert [call.role for call in run.asked if call.method == "unacknowledged"] == ["actor 1"]
    run.answer("actor 1", "unacknowledged", (32, (shard_status(),)))
    assert (run.fleet.credits.inserting, taken) == (32, [shard_status()])


def test_a_role_of_other_code_is_refused() -> None:
    own = process_info()
    elsewhere = ProcessInfo(7, own.host, "/another/checkout")
    for other in (elsewhere, ProcessInfo(7, f"not-{own.host}", own.root, code=f"{own.code}0")):
        with pytest.raises(RunFailed, match=r"actor 1: process 7 .*runs") as refused:
            ByHand().answer("actor 1", "process_info", other)
        assert refused.value.role == "actor 1"
    same = ByHand()
    same.answer("actor 1", "process_info", own)
    assert same.fleet.actors[1].is_up


def test_logs_are_fetched_from_other_machines_and_are_nobodys_work() -> None:
    run = ByHand()
    for name in ("actor 0", "actor 1"):
        run.answer(name, "process_info", ProcessInfo(0, "", "", relays_log=name == "actor 1"))
    run.fleet.ask_logs()
    run.fleet.ask_logs()
    assert [call.role for call in run.asked if call.method == "take_log"] == ["actor 1"]
    assert run.fleet.logs_asked() == {run.fleet.actors[1]}
    assert run.fleet.actors[1].in_flight == set()


def test_a_role_is_frozen_once_it_is_silent_longer_than_its_limit() -> None:
    run, end = ByHand("actors.chunk_deadline_seconds=10"), Continuation()
    run.come_up()
    grant_rollout(run.fleet, end)
    run.fleet.clock.seconds += 10.0
    assert run.fleet.frozen() is None
    grant_rollout(run.fleet, end, actor=1)
    run.fleet.clock.seconds += 1.0
    # The other one has only just begun, and the idle roles have nothing to answer.
    assert run.fleet.frozen() == (run.fleet.actors[0], 11.0)
    run.answer("actor 0", "rollout", None)
    assert run.fleet.frozen() is None


def test_a_first_chunk_may_take_longer_than_later_ones() -> None:
    run, end = ByHand(), Continuation()
    run.come_up()
    grant_rollout(run.fleet, end)
    run.fleet.clock.seconds += 61.0
    assert run.fleet.frozen() is None
    assert run.fleet.slow_at_first() == (run.fleet.actors[0], 600.0)
    run.answer("actor 0", "rollout", None)
    assert run.fleet.slow_at_first() is None
    grant_rollout(run.fleet, end, actor=1)
    # Chunks have taken a minute, so the next one has twenty.
    run.fleet.clock.seconds += 601.0
    assert run.fleet.slow_at_first() is run.fleet.frozen() is None
    run.fleet.clock.seconds += 620.0
    assert run.fleet.frozen() == (run.fleet.actors[1], 1221.0)
