"""Reports of roles as tests want them: complete, small, and changed by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from actors.core import EvaluationReport, RolloutReport
from learner.core import LearnReport
from replay_service.histogram import Histogram
from replay_service.messages import PrioritySummary, ProcessUsage, ShardMetrics, ShardStatus


def rollout_report(**changes: Any) -> RolloutReport:
    """A chunk of 100 env steps of actor 0: 4 seconds of work and 6 idle, one episode of return 1."""
    report = RolloutReport(
        actor=0,
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
    return replace(report, **changes)


def learn_report(**changes: Any) -> LearnReport:
    """A learner's first chunk: 64 updates in 4 seconds, of which updates alone take 2."""
    report = LearnReport(
        version=64,
        updates=64,
        samples=64,
        loss_mean=1.0,
        q_mean=1.0,
        target_mean=1.0,
        td_error_mean=1.0,
        grad_norm_mean=1.0,
        grad_norm_clipped_mean=0.5,
        target_gap=0.25,
        learning_rate=1e-3,
        seconds={"wait": 1.0, "draw": 0.25, "update": 2.0, "other": 0.5, "idle": 0.25},
        statuses=(),
        loss_max=9.0,
        q_min=-2.0,
        q_max=3.0,
        policy_lag=Histogram((2,) * 25, 7.0),
        priority_staleness_mean=4.0,
        priority_staleness_max=8,
        prefetched_requests=2,
        threads=3,
        process=ProcessUsage(5.0, 70),
    )
    return replace(report, **changes)


def evaluation_report(**changes: Any) -> EvaluationReport:
    """Two greedy episodes of version 64, returns 1 and 3; the first one was truncated."""
    report = EvaluationReport(
        version=64,
        seed_domain=1,
        returns=(1.0, 3.0),
        lengths=(5, 6),
        seconds=2.0,
        start_values=(1.5, 2.5),
        discounted_returns=(1.0, 2.0),
        truncated=(True, False),
        action_counts=(8, 0),
        idle_seconds=1.0,
        process=ProcessUsage(1.0, 5),
    )
    return replace(report, **changes)


def shard_status(**changes: Any) -> ShardStatus:
    """A status of shard 0 without metrics: 100 transitions held of 150 inserted."""
    status = ShardStatus(
        shard=0,
        incarnation=0,
        count=100,
        mass=50.0,
        min_priority=0.1,
        inserted_transitions_total=150,
        env_steps_total=160,
        evicted_transitions_total=50,
        sampled_transitions_total=600,
        late_priorities_total=2,
        stored_bytes=9_000,
    )
    return replace(status, **changes)


def shard_metrics(**changes: Any) -> ShardMetrics:
    """Metrics of a shard of 200 transitions, as its reply to `status` carries them."""
    metrics = ShardMetrics(
        capacity=200,
        seconds={"insert": 1.0, "sample": 2.0, "update": 0.5},
        inserted_bytes=1_000,
        sampled_bytes=5_000,
        repeated_pushes=1,
        refused_pushes=0,
        refused_priorities=0,
        sample_age=Histogram((1,) * 25, 10.0),
        evicted_draws=Histogram((2, 2, 1, *(0,) * 22), 4.0),
        evicted_draws_square_sum=6.0,
        priorities=PrioritySummary(2.0, 0.5),
        process=ProcessUsage(1.0, 10),
    )
    return replace(metrics, **changes)
