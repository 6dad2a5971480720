"""What roles report, summed: by hand-made reports, and bounded however many actors there are."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from actors.core import EvaluationReport, RolloutReport
from cluster.control.pacing import Ledger, Pacing
from cluster.metrics.accounts import Accounts, Checkpointed, FleetMetrics, Processes
from cluster.metrics.figures import Figures
from cluster.metrics.snapshot import Snapshot
from cluster.metrics.totals import ShardTotals
from cluster.metrics.usage import MachineMeter, MachineUsage, UsageMeter
from cluster.record.prometheus import SnapshotCollector
from learner.core import LearnReport
from replay_service.histogram import Histogram
from replay_service.messages import PrioritySummary, ProcessUsage, ShardMetrics, ShardStatus

MACHINE = MachineUsage(1_000, 400, 100, 30)


def rollout(actor: int = 0, **changes: object) -> RolloutReport:
    report = RolloutReport(
        actor=actor,
        incarnation=0,
        version=0,
        env_steps=100,
        transitions_pushed=10,
        episode_returns=(1.0,),
        episode_lengths=(5,),
        epsilon=0.5,
        seconds={"act": 1.0, "env": 2.0, "build": 1.0, "push": 0.0, "idle": 6.0},
        statuses=(),
        start_values=(3.0,),
        action_counts=(5, 5),
        reward_abs_sum=20.0,
        reward_abs_max=4.0,
        pushes_in_flight=1,
    )
    return dataclasses.replace(report, **changes)


def status(shard: int, **changes: object) -> ShardStatus:
    metrics = ShardMetrics(
        capacity=200,
        seconds={"insert": 1.0, "sample": 2.0, "update": 0.5},
        inserted_bytes=1_000,
        sampled_bytes=5_000,
        repeated_pushes=1,
        sample_age=Histogram((1,) * 25, 10.0),
        priorities=PrioritySummary(2.0, 0.5),
        process=ProcessUsage(1.0, 10),
    )
    known = ShardStatus(shard, 0, 100, 50.0, 0.1, 150, 160, 50, 600, 2, 9_000, metrics=metrics)
    return dataclasses.replace(known, **changes)


LEARNED = LearnReport(
    version=64,
    updates=64,
    samples=64,
    loss_mean=1.0,
    q_mean=1.0,
    target_mean=1.0,
    td_error_mean=1.0,
    grad_norm_mean=1.0,
    learning_rate=1.0,
    seconds={"wait": 1.0, "update": 2.0, "other": 0.5, "idle": 0.25},
    statuses=(),
    loss_max=9.0,
    q_min=-2.0,
    q_max=3.0,
    policy_lag=Histogram((2,) * 25, 7.0),
    priority_staleness_mean=4.0,
    priority_staleness_max=8,
    prefetched_requests=2,
    process=ProcessUsage(5.0, 70),
)
EVALUATED = EvaluationReport(
    64, 1, (1.0, 3.0), (5, 6), 2.0, (1.5, 2.5), (1.0, 2.0), (True, False), (8, 0), 1.0, ProcessUsage(1.0, 5)
)


def fleet(actors: int) -> FleetMetrics:
    roles = {"shard": 1, "learner": 1, "actor": actors, "evaluator": 1}
    return FleetMetrics(roles, {**roles, "actor": actors - 1}, {"rollout": 3, "learn": 2, "evaluate": 0}, 77)


def snapshot_of(figures: Figures, totals: ShardTotals, actors: int = 1, *, now: float = 10.0) -> Snapshot:
    ledger = Ledger(inserted=100, inserting=0, sampled=600, sampling=0)
    usage = (ProcessUsage(3.0, 50), MACHINE)
    return figures.snapshot(now, ledger, Pacing(4.0, 1, 10.0), totals, None, fleet(actors), usage)


def full() -> tuple[Figures, ShardTotals]:
    figures, totals = Figures(0.0, 0.0, 1, accounts=Accounts(0.9)), ShardTotals()
    figures.take_rollout(rollout())
    figures.take_evaluation(EVALUATED)
    figures.take_wait(3.0, 4.0)
    totals.take([status(0)])
    return figures, totals


def test_what_is_summed_by_hand() -> None:
    figures, totals = full()
    take_learning(figures)
    figures.take_rollout(rollout(1, seconds={"act": 1.0, "idle": 0.0}, action_counts=(10, 0), epsilon=0.25))
    snapshot = snapshot_of(figures, totals, 2)
    assert snapshot.role_seconds_total == {
        "actor": {"act": 2.0, "env": 2.0, "build": 1.0, "push": 0.0, "idle": 6.0},
        "learner": LEARNED.seconds,
        "evaluator": {"play": 2.0, "idle": 1.0},
        "coordinator": {"wait": 3.0, "work": 1.0},
        "shard": {"insert": 1.0, "sample": 2.0, "update": 0.5},
    }
    # 100 steps in 4 and in 1 second of work; the second acted with version 0 when 64 was the newest.
    assert snapshot.actor_env_steps_per_second == {"min": 25.0, "mean": 62.5, "max": 100.0}
    assert snapshot.actor_policy_lag_updates == {"min": 0, "mean": 32.0, "max": 64}
    assert snapshot.actor_epsilon == {"min": 0.25, "mean": 0.375, "max": 0.5}
    assert snapshot.pushes_in_flight == 2
    assert (snapshot.reward_abs_mean, snapshot.reward_abs_max) == (2.0, 4.0)
    shares = (0.75, 0.25)
    assert snapshot.action_entropy_ratio == pytest.approx(-sum(p * math.log2(p) for p in shares))
    assert (snapshot.evaluation_start_value_mean, snapshot.evaluation_discounted_return_mean) == (2.0, 1.5)
    assert (snapshot.evaluation_return_std, snapshot.evaluation_truncated_ratio) == (1.0, 0.5)
    assert snapshot.evaluation_action_entropy_ratio == 0.0
    assert snapshot.reuse_mean == 4.0
    assert snapshot.shard_priority_effective_ratio == {"0": 0.5}
    assert snapshot.sample_policy_lag_updates == LEARNED.policy_lag
    assert snapshot.process_cpu_seconds_total == {
        "coordinator": 3.0,
        "shard": 1.0,
        "learner": 5.0,
        "evaluator": 1.0,
    }
    assert (snapshot.machine_memory_bytes, snapshot.shared_memory_used_bytes) == (1_000, 30)


def test_means_of_the_interval_begin_anew_and_maxima_do_not() -> None:
    figures, totals = full()
    snapshot_of(figures, totals)
    later = snapshot_of(figures, totals, now=11.0)
    assert (later.reward_abs_mean, later.action_entropy_ratio) == (None, None)
    assert later.reward_abs_max == 4.0
    assert later.start_value_mean == 3.0


def test_the_pace_of_actors_holds_between_chunks_that_are_far_apart() -> None:
    """Image actors send thousands of steps every half a minute; a look in between must not say 0."""
    figures, totals = Figures(0.0, 0.0, 2, accounts=Accounts(0.9)), ShardTotals()
    chunks = {
        5: rollout(0, env_steps=300, seconds={"act": 2.0, "idle": 3.0}),
        6: rollout(1, env_steps=600, seconds={"act": 6.0, "idle": 0.0}),
        9: rollout(0, env_steps=600, seconds={"act": 4.0, "idle": 0.0}),
    }
    paces = []
    for now in range(1, 21):
        if now in chunks:
            figures.take_rollout(chunks[now])
        seen = snapshot_of(figures, totals, 2, now=float(now))
        paces.append((seen.env_steps_per_second, seen.actor_busy_share))
    first, both, nobody = (60.0, 0.2), (160.0, 0.7), (0.0, 0.0)
    # Of the first actor from 5 and from 9 on, of the second from 6 on: 100 a second, all of its time. They
    # are silent for more than twice as long after 17 and 18.
    expected = [nobody] * 4 + [first] + [both] * 3 + [(250.0, 1.0)] * 9 + [(100.0, 0.5)] + [nobody] * 2
    assert paces == [pytest.approx(pace) for pace in expected]


def test_restarts_by_role_and_cause() -> None:
    figures, totals = full()
    figures.take_restart("actor", "process")
    figures.take_restart("actor", "process")
    figures.take_restart("shard", "object")
    figures.take_restart("shard", "frozen")
    snapshot = snapshot_of(figures, totals)
    assert snapshot.role_restarts_total is not None
    none = {"process": 0, "object": 0, "frozen": 0, "memory": 0}
    assert snapshot.role_restarts_total["actor"] == {**none, "process": 2}
    assert snapshot.role_restarts_total["shard"] == {**none, "object": 1, "frozen": 1}
    assert snapshot.restarts_total == 4


def test_checkpoints_are_unknown_until_there_is_one() -> None:
    figures, totals = full()
    before = snapshot_of(figures, totals)
    assert (before.checkpoints_total, before.checkpoint_age_seconds) == (0, None)
    figures.take_checkpoint(Checkpointed(at=8.0, duration_seconds=0.5, num_bytes=99))
    after = snapshot_of(figures, totals, now=11.0)
    assert (after.checkpoints_total, after.checkpoint_age_seconds, after.checkpoint_bytes) == (1, 3.0, 99)


def test_the_cpu_time_of_a_role_outlives_its_processes() -> None:
    processes = Processes()
    for seconds in (2.0, 5.0, 1.0, 4.0):  # a new process after the second reading
        processes.take("actor", 0, ProcessUsage(seconds, 100))
    processes.take("actor", 1, ProcessUsage(3.0, 50))
    processes.take("actor", 1, None)
    assert processes.cpu_seconds() == {"actor": 12.0}
    assert processes.resident_bytes() == {"actor": 150}


@pytest.mark.parametrize(("actors", "shards"), [(1, 1), (1_000, 1), (1_000, 7)])
def test_series_do_not_grow_with_actors_and_by_at_most_ten_with_a_shard(actors: int, shards: int) -> None:
    figures, totals = full()
    take_learning(figures)
    figures.take_checkpoint(Checkpointed(at=8.0, duration_seconds=0.5, num_bytes=99))
    for actor in range(actors):
        figures.take_rollout(rollout(actor, process=ProcessUsage(1.0, 10)))
    totals.take([status(shard) for shard in range(shards)])
    snapshot = snapshot_of(figures, totals, actors)
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: snapshot, {"run": "a"}))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    by_shard = [("shard" in sample.labels) for family in families for sample in family.samples]
    assert len(by_shard) <= 500 + 10 * shards
    assert sum(by_shard) <= 10 * shards
    assert by_shard.count(False) <= 250


def test_meters_read_this_process_and_not_too_often() -> None:
    meter = UsageMeter(every_seconds=60.0)
    usage = meter.due()
    assert usage is not None
    assert 0.0 < usage.cpu_seconds <= time.process_time()
    assert usage.resident_bytes > 10_000_000
    assert meter.due() is None
    read = MachineMeter().due()
    assert read is not None
    assert 0 < read[1].memory_available_bytes < read[1].memory_bytes


def take_learning(figures: Figures) -> None:
    figures.take_learning(LEARNED, 1)


def test_a_learner_that_is_cut_short_keeps_the_last_extremes() -> None:
    accounts = Accounts(0.9)
    accounts.take_learning(LEARNED)
    accounts.take_learning(dataclasses.replace(LEARNED, updates=0, q_max=math.nan, policy_lag=Histogram()))
    figures, totals = full()
    completed = accounts.complete(
        snapshot_of(figures, totals), 1.0, version=64, best=None, totals=totals, fleet=fleet(1), usage=None
    )
    assert (completed.q_min, completed.q_max, completed.loss_max) == (-2.0, 3.0, 9.0)
    assert completed.role_seconds_total is not None
    assert completed.role_seconds_total["learner"]["update"] == 4.0
