"""Metrics of processes. Those of actors, learner and evaluator are tested in test_counters.py."""

from __future__ import annotations

from cluster.metrics.role_metrics import ProcessMetrics
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
