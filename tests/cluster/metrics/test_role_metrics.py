"""Metrics of processes and shards. Those of actors, learner and evaluator are tested in test_counters.py."""

from __future__ import annotations

from qfleet_reports import shard_metrics, shard_status

from cluster.metrics.role_metrics import ProcessMetrics, metrics_of_shards
from cluster.metrics.totals import ShardTotals
from replay_service.messages import ProcessUsage


def test_the_cpu_time_of_a_role_outlives_its_processes() -> None:
    processes = ProcessMetrics()
    for seconds in (2.0, 5.0, 1.0, 4.0):  # a new process after the second reading
        processes.add("actor", 0, ProcessUsage(seconds, 100))
    processes.add("actor", 1, ProcessUsage(3.0, 50))
    processes.add("actor", 1, None)
    metrics = processes.metrics()
    assert metrics["process_cpu_seconds_total"] == {"actor": 12.0}
    # A role that has not reported any time has none yet; the coordinator has from the beginning.
    coordinator = {"wait": 0.0, "work": 0.0}
    assert metrics["role_seconds_total"] == {"coordinator": coordinator}
    processes.add("actor", 1, None, {"act": 2.0})
    assert processes.metrics()["role_seconds_total"] == {"actor": {"act": 2.0}, "coordinator": coordinator}
    assert metrics["process_resident_memory_bytes"] == {"actor": 150}


def test_metrics_of_the_living_and_totals_over_all() -> None:
    totals = ShardTotals()
    first = shard_metrics(priorities=None)
    totals.take([shard_status(metrics=first), shard_status(shard=1, count=0, mass=0.0)])
    totals.take([shard_status(incarnation=1, inserted_transitions_total=50, metrics=shard_metrics())])
    assert totals.living_metrics() == {0: shard_metrics()}
    assert totals.seconds() == {"insert": 2.0, "sample": 4.0, "update": 1.0}
    metrics = metrics_of_shards(totals)
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
