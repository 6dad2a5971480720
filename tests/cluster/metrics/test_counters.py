"""Counters: sums by hand-made reports, what a checkpoint keeps, series that do not grow with the actors.

Tests cluster/metrics/episodes.py, too, whose sums are in every snapshot.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from qfleet_reports import evaluation_report, learn_report, rollout_report, shard_metrics, shard_status

from cluster.control.evaluation import Best
from cluster.control.pacing import Ledger, Pacing, PacingOrigin
from cluster.metrics.counters import CheckpointMetrics, Counters, CountersState, FleetMetrics
from cluster.metrics.snapshot import Snapshot
from cluster.metrics.usage import MachineUsage
from cluster.record.prometheus import SnapshotCollector
from cluster.settings.resolved import ResolvedConfig
from replay_service.messages import ProcessUsage

CONFIG = ResolvedConfig()


def new_counters(num_actors: int = 1) -> Counters:
    """Counters of a run that began at 0, with discount 0.9."""
    return Counters(started=0.0, discount=0.9, num_actors=num_actors)


def full_counters(num_actors: int = 1) -> Counters:
    """Counters that have taken one report of each kind."""
    counters = new_counters(num_actors)
    counters.take_rollout(rollout_report(statuses=(shard_status(metrics=shard_metrics()),)))
    counters.take_learning(learn_report(), 1)
    counters.take_evaluation(evaluation_report())
    counters.take_wait(3.0, 4.0)
    return counters


def snapshot_of(
    counters: Counters, *, now: float = 10.0, actors: int = 1, config: ResolvedConfig = CONFIG
) -> Snapshot:
    roles = {"shard": 1, "learner": 1, "actor": actors, "evaluator": 1}
    return counters.snapshot(
        now,
        ledger=Ledger(inserted=100, inserting=0, sampled=600, sampling=0),
        pacing=Pacing(4.0, 1, 10.0),
        best=Best(64, 2.5, 3.0, 0.5),
        fleet=FleetMetrics(
            roles, {**roles, "actor": actors - 1}, {"rollout": 3, "learn": 2, "evaluate": 0}, 77
        ),
        usage=(ProcessUsage(3.0, 50), MachineUsage(1_000, 400, 100, 30)),
        config=config,
    )


def test_sums_by_hand() -> None:
    counters = full_counters(2)
    counters.take_rollout(
        rollout_report(actor=1, seconds={"act": 1.0, "idle": 0.0}, action_counts=(10, 0), epsilon=0.25)
    )
    snapshot = snapshot_of(counters, actors=2)
    assert snapshot.role_seconds_total == {
        "actor": {"act": 2.0, "env": 2.0, "build": 1.0, "push": 0.0, "idle": 6.0},
        "learner": learn_report().seconds,
        "evaluator": {"play": 2.0, "idle": 1.0},
        "shard": {"insert": 1.0, "sample": 2.0, "update": 0.5},
        "coordinator": {"wait": 3.0, "work": 1.0},
    }
    # 100 steps in 4 and in 1 second of work; the second acted with version 0 when 64 was the newest.
    assert snapshot.actor_env_steps_per_second == {"min": 25.0, "mean": 62.5, "max": 100.0}
    assert snapshot.actor_policy_lag_updates == {"min": 0, "mean": 32.0, "max": 64}
    assert snapshot.actor_epsilon == {"min": 0.25, "mean": 0.375, "max": 0.5}
    assert (snapshot.epsilon, snapshot.policy_lag_updates) == (0.25, 64)
    assert snapshot.pushes_in_flight == 2
    assert (snapshot.reward_abs_mean, snapshot.reward_abs_max) == (2.0, 4.0)
    shares = (0.75, 0.25)
    assert snapshot.action_entropy_ratio == pytest.approx(-sum(p * math.log2(p) for p in shares))
    assert (snapshot.evaluation_start_value_mean, snapshot.evaluation_discounted_return_mean) == (2.0, 1.5)
    assert (snapshot.evaluation_return_std, snapshot.evaluation_truncated_ratio) == (1.0, 0.5)
    assert snapshot.evaluation_truncation_discount_mean == pytest.approx(0.9**5 / 2)
    assert snapshot.evaluation_action_entropy_ratio == 0.0
    assert (snapshot.evaluations_total, snapshot.evaluation_version, snapshot.evaluation_episodes) == (
        1,
        64,
        2,
    )
    assert snapshot.sample_policy_lag_updates == learn_report().policy_lag
    assert snapshot.process_cpu_seconds_total == {
        "coordinator": 3.0,
        "shard": 1.0,
        "learner": 5.0,
        "evaluator": 1.0,
    }
    assert snapshot.process_resident_memory_bytes == {
        "coordinator": 50,
        "shard": 10,
        "learner": 70,
        "evaluator": 5,
    }
    assert (snapshot.machine_memory_bytes, snapshot.machine_memory_available_bytes) == (1_000, 400)
    assert (snapshot.shared_memory_bytes, snapshot.shared_memory_used_bytes) == (100, 30)
    assert (snapshot.best_version, snapshot.best_return_mean, snapshot.best_return_std) == (64, 3.0, 0.5)
    assert snapshot.credits_in_flight == {"rollout": 3, "learn": 2, "evaluate": 0}
    assert (snapshot.roles_up, snapshot.unacknowledged_transitions) == (
        {"shard": 1, "learner": 1, "actor": 1, "evaluator": 1},
        77,
    )


def test_depth_of_replay_and_age_of_targets_follow_their_settings() -> None:
    """Each metric moves as predicted when its setting is turned, and the others stay."""

    def measured(lanes: int, batch_size: int, count: int) -> tuple[float | None, ...]:
        counters = new_counters()
        status = shard_status(count=count, metrics=shard_metrics())
        counters.take_rollout(rollout_report(statuses=(status,), episode_lengths=(5, 15)))
        config = replace(
            CONFIG,
            actors=replace(CONFIG.actors, num_actors=2, envs_per_actor=lanes // 2),
            learner=replace(CONFIG.learner, batch_size=batch_size, target_update_updates=60),
        )
        now = snapshot_of(counters, config=config)
        return now.lane_transitions, now.lane_episodes, now.target_age_env_steps

    # 600 samples of the 99 transitions that came while learning could.
    assert measured(lanes=4, batch_size=100, count=100) == (25.0, 2.5, 990.0)
    assert measured(lanes=8, batch_size=100, count=100) == (12.5, 1.25, 990.0)
    assert measured(lanes=4, batch_size=100, count=200) == (50.0, 5.0, 990.0)
    assert measured(lanes=4, batch_size=50, count=100) == (25.0, 2.5, 495.0)
    unknown = snapshot_of(new_counters())
    assert (unknown.lane_transitions, unknown.lane_episodes, unknown.evicted_draws) == (0.0, None, None)


def test_a_snapshot_has_the_totals_of_the_run_and_the_state_of_its_fleet() -> None:
    counters = full_counters()
    counters.take_rollout(rollout_report(episode_returns=(2.0, 3.0), episode_lengths=(6, 13)))
    counters.take_evaluation(evaluation_report(start_values=(1.5, 4.5), discounted_returns=(1.0, 2.0)))
    snapshot = snapshot_of(counters, now=12.5, actors=3)
    assert (snapshot.run_seconds, snapshot.discount) == (12.5, 0.9)
    # Inserted and sampled are the pacing's: 100 and 600, one of the 100 before learning could start.
    assert (snapshot.inserted_transitions_total, snapshot.sampled_transitions_total) == (100, 600)
    assert snapshot.samples_per_insert == pytest.approx(600 / 99)
    assert snapshot.samples_per_insert_target == 4.0
    assert (snapshot.env_steps_total, snapshot.replay_transitions, snapshot.replay_bytes) == (160, 100, 9_000)
    assert (snapshot.train_return_mean, snapshot.train_length_mean) == (2.0, 8.0)
    # Values less returns are 0.5 and 2.5.
    assert snapshot.evaluation_start_value_error_std == 1.0
    assert snapshot.credits_in_flight == {"rollout": 3, "learn": 2, "evaluate": 0}
    assert snapshot.roles_wanted == {"shard": 1, "learner": 1, "actor": 3, "evaluator": 1}


def test_a_snapshot_has_the_scalars_of_the_newest_learning_chunk() -> None:
    counters = full_counters()
    counters.take_learning(learn_report(version=80, updates=16, loss_mean=3.0, skipped_updates=1), 2)
    snapshot = snapshot_of(counters)
    assert (snapshot.loss, snapshot.loss_max) == (3.0, 9.0)
    assert (snapshot.q_min, snapshot.q_mean, snapshot.q_max) == (-2.0, 1.0, 3.0)
    assert (snapshot.grad_norm_mean, snapshot.grad_norm_clipped_mean, snapshot.target_gap) == (1.0, 0.5, 0.25)
    assert (snapshot.priority_staleness_mean_updates, snapshot.priority_staleness_max_updates) == (4.0, 8)
    assert (snapshot.td_error_mean, snapshot.learning_rate, snapshot.prefetched_requests) == (1.0, 1e-3, 2)
    assert snapshot.learner_threads == 3
    assert (snapshot.weights_version, snapshot.updates_total, snapshot.skipped_updates_total) == (80, 80, 1)
    assert counters.sampled_transitions == 64 + 2 * 16
    # A chunk that ended before its first update has no scalars; its time counts.
    counters.take_learning(learn_report(version=80, updates=0, loss_mean=math.nan, q_max=math.nan), 2)
    snapshot = snapshot_of(counters)
    assert (snapshot.loss, snapshot.q_max) == (3.0, 3.0)
    assert snapshot.role_seconds_total is not None
    assert snapshot.role_seconds_total["learner"]["update"] == 6.0


def test_ranks_of_a_learner_count_once_but_each_has_a_process() -> None:
    counters = new_counters()
    first = learn_report(updates=16, unequal_weights=1, seconds={"update": 4.0})
    counters.take_learning(replace(first, process=ProcessUsage(2.0, 100)), 2)
    counters.take_rank(replace(first, rank=1, process=ProcessUsage(2.5, 50)))
    snapshot = snapshot_of(counters)
    assert (snapshot.updates_total, snapshot.unequal_ranks_total) == (16, 1)
    assert snapshot.role_seconds_total is not None
    assert snapshot.role_seconds_total["learner"] == {"update": 4.0}
    assert snapshot.process_cpu_seconds_total is not None
    assert snapshot.process_cpu_seconds_total["learner"] == 4.5
    assert snapshot.process_resident_memory_bytes is not None
    assert snapshot.process_resident_memory_bytes["learner"] == 150
    resumed = new_counters()
    resumed.resume(counters.state())
    assert snapshot_of(resumed).unequal_ranks_total == 1


def test_a_mean_over_nothing_is_not_known() -> None:
    counters = new_counters()
    counters.take_learning(learn_report(priority_staleness_mean=math.nan), 1)
    assert snapshot_of(counters).priority_staleness_mean_updates is None


def test_means_of_the_interval_begin_anew_and_maxima_do_not() -> None:
    counters = full_counters()
    first = snapshot_of(counters)
    later = snapshot_of(counters, now=11.0)
    assert (first.updates_per_second, later.updates_per_second) == (6.4, 0.0)
    assert (later.reward_abs_mean, later.action_entropy_ratio) == (None, None)
    assert later.reward_abs_max == 4.0
    assert later.start_value_mean == 3.0


def test_rates_of_actors_hold_between_chunks_that_are_far_apart() -> None:
    """Image actors report thousands of steps every half minute; a snapshot in between must not say 0."""
    counters = new_counters(2)
    chunks = {
        5: rollout_report(env_steps=300, seconds={"act": 2.0, "idle": 3.0}),
        6: rollout_report(actor=1, env_steps=600, seconds={"act": 6.0, "idle": 0.0}),
        9: rollout_report(env_steps=600, seconds={"act": 4.0, "idle": 0.0}),
    }
    rates = []
    for now in range(1, 21):
        if now in chunks:
            counters.take_rollout(chunks[now])
        seen = snapshot_of(counters, now=float(now), actors=2)
        rates.append((seen.env_steps_per_second, seen.actor_busy_share))
    first, both, nobody = (60.0, 0.2), (160.0, 0.7), (0.0, 0.0)
    # Of the first actor from 5 and from 9 on, of the second from 6 on: 100 a second, all of its time. They
    # are silent for more than twice as long after 17 and 18.
    expected = [nobody] * 4 + [first] + [both] * 3 + [(250.0, 1.0)] * 9 + [(100.0, 0.5)] + [nobody] * 2
    assert rates == [pytest.approx(rate) for rate in expected]


def test_shares_of_the_learners_time_are_at_most_one_however_long_its_chunks_take() -> None:
    counters = new_counters()
    seen = []
    for now in range(1, 9):
        if now == 4:  # a first chunk that took longer than a snapshot's interval
            counters.take_learning(learn_report(seconds={"wait": 0.4, "draw": 0.4, "update": 3.2}), 1)
        if now == 5:
            counters.take_learning(learn_report(seconds={"update": 0.5, "idle": 0.5}), 1)
        snapshot = snapshot_of(counters, now=float(now))
        seen.append((snapshot.learner_update_share, snapshot.learner_wait_share))
    assert seen == [
        *[(0.0, 0.0)] * 3,
        pytest.approx((0.8, 0.1)),
        *[(0.5, 0.0)] * 3,
        (0.0, 0.0),
    ]


def test_restarts_by_role_and_cause() -> None:
    counters = full_counters()
    counters.take_restart("actor", "process")
    counters.take_restart("actor", "process")
    counters.take_restart("shard", "object")
    counters.take_restart("shard", "frozen")
    counters.take_env_restart("hang")
    snapshot = snapshot_of(counters)
    assert snapshot.role_restarts_total is not None
    none = {"process": 0, "object": 0, "frozen": 0, "memory": 0}
    assert snapshot.role_restarts_total["actor"] == {**none, "process": 2}
    assert snapshot.role_restarts_total["shard"] == {**none, "object": 1, "frozen": 1}
    assert (snapshot.restarts_total, counters.restarts) == (4, 4)
    assert snapshot.env_restarts_total == {"raise": 0, "invalid": 0, "hang": 1, "memory": 0}
    assert counters.env_restarts == 1


def test_checkpoints_are_unknown_until_there_is_one() -> None:
    counters = full_counters()
    before = snapshot_of(counters)
    assert (before.checkpoints_total, before.checkpoint_age_seconds) == (0, None)
    counters.take_checkpoint(CheckpointMetrics(at=8.0, duration_seconds=0.5, num_bytes=99))
    after = snapshot_of(counters, now=11.0)
    assert (after.checkpoints_total, after.checkpoint_age_seconds, after.checkpoint_bytes) == (1, 3.0, 99)
    assert after.checkpoint_duration_seconds == 0.5


def test_a_checkpoint_keeps_the_counters_and_another_process_goes_on_from_them() -> None:
    counters = full_counters()
    counters.take_restart("actor", "process")
    counters.take_env_restart("raise")
    counters.take_checkpoint(CheckpointMetrics(at=8.0, duration_seconds=0.5, num_bytes=99))
    counters.pacing_origin = PacingOrigin(10, 20)
    state = counters.state()
    assert state == CountersState(
        version=64,
        updates=64,
        sampled_transitions=64,
        restarts=1,
        episodes=1,
        returns=(1.0,),
        lengths=(5,),
        first_returns=(1.0,),
        evaluation_return_mean=2.0,
        env_restarts={"raise": 1},
        role_restarts=snapshot_of(counters).role_restarts_total or {},
        evaluations=1,
        checkpoints=1,
        shard_sums=counters.shards.sums(),
        pacing_origin=PacingOrigin(10, 20),
    )
    resumed = new_counters()
    resumed.resume(state)
    assert resumed.state() == state
    resumed.begin_interval(20.0)
    assert resumed.interval_seconds(20.5) == 0.5
    resumed.take_learning(learn_report(version=128), 1)
    resumed.take_rollout(rollout_report(episode_returns=(3.0,)))
    snapshot = snapshot_of(resumed, now=21.0)
    # Only what was learned in this interval is its rate.
    assert (snapshot.updates_total, snapshot.updates_per_second) == (128, 64.0)
    assert (snapshot.episodes_total, snapshot.train_return_mean, snapshot.first_return_mean) == (2, 2.0, 2.0)
    assert (snapshot.restarts_total, resumed.env_restarts) == (1, 1)
    assert snapshot.evaluation_return_mean == 2.0
    assert (snapshot.evaluations_total, snapshot.checkpoints_total) == (1, 1)
    assert snapshot.role_restarts_total is not None
    assert snapshot.role_restarts_total["actor"]["process"] == 1
    # What shards count since they began goes on as well.
    drawn = state.shard_sums["drawn_transitions_total"]
    assert drawn > 0
    assert snapshot.drawn_transitions_total == drawn
    resumed.shards.take([shard_status(sampled_transitions_total=5, metrics=shard_metrics(refused_pushes=3))])
    snapshot = snapshot_of(resumed, now=22.0)
    assert snapshot.drawn_transitions_total == drawn + 5
    assert (snapshot.refused_pushes_total, snapshot.refused_priorities_total) == (3, 0)


def test_the_next_life_in_this_process_goes_on_with_what_no_checkpoint_keeps() -> None:
    counters = full_counters()
    counters.take_checkpoint(CheckpointMetrics(at=8.0, duration_seconds=0.5, num_bytes=99))
    state = counters.state()
    counters.take_rollout(rollout_report(env_steps=7))
    counters.resume(replace(state, updates=50))
    assert counters.shards.inserted_transitions == 0
    snapshot = snapshot_of(counters)
    assert (snapshot.updates_total, snapshot.episodes_total) == (50, 1)
    assert (snapshot.checkpoints_total, snapshot.evaluations_total, snapshot.loss) == (1, 1, 1.0)
    assert snapshot.role_seconds_total is not None
    assert snapshot.role_seconds_total["actor"]["act"] == 2.0


def test_first_returns_are_from_before_learning_began_and_ten_at_least() -> None:
    counters = new_counters()
    counters.take_rollout(rollout_report(episode_returns=(1.0,) * 4))
    counters.take_learning(learn_report(), 1)
    for _ in range(3):
        counters.take_rollout(rollout_report(episode_returns=(2.0,) * 4))
    assert counters.state().first_returns == (1.0,) * 4 + (2.0,) * 8
    early = new_counters()
    for _ in range(3):
        early.take_rollout(rollout_report(episode_returns=(1.0,) * 40))
    assert early.state().first_returns == (1.0,) * 100
    assert early.state().episodes == 120


@pytest.mark.parametrize(("actors", "shards"), [(1, 1), (1_000, 1), (1_000, 7)])
def test_series_do_not_grow_with_actors_and_by_at_most_ten_with_a_shard(actors: int, shards: int) -> None:
    counters = full_counters(actors)
    counters.take_checkpoint(CheckpointMetrics(at=8.0, duration_seconds=0.5, num_bytes=99))
    for actor in range(actors):
        counters.take_rollout(rollout_report(actor=actor, process=ProcessUsage(1.0, 10)))
    counters.shards.take([shard_status(shard=shard, metrics=shard_metrics()) for shard in range(shards)])
    snapshot = snapshot_of(counters, actors=actors)
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: snapshot, {"run": "a"}))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    by_shard = [("shard" in sample.labels) for family in families for sample in family.samples]
    assert len(by_shard) <= 500 + 10 * shards
    assert sum(by_shard) <= 10 * shards
    assert by_shard.count(False) <= 250
