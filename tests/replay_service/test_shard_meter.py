"""What a shard says of its own work: bytes, ages of what it draws, and how even its priorities are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from replay_service.messages import PriorityUpdate, SampleRequest, ShardMetrics
from replay_service.selectors import PrioritizedSelector
from replay_service.shard import ReplayShard
from replay_service.shard_meter import ShardMeter

ShardOf = Callable[..., ReplayShard]


def metrics_of(shard: ReplayShard) -> ShardMetrics:
    metrics = shard.status().metrics
    assert metrics is not None
    return metrics


def test_ages_are_counted_in_transitions_of_the_whole_replay() -> None:
    meter = ShardMeter(num_shards=4, transition_bytes=10)
    meter.exchanged(np.array([100, 97, 90]), 100, 0.5, 0.25)
    for _ in range(31):  # not looked at
        meter.exchanged(np.array([0]), 100, 0.5, 0.25)
    meter.exchanged(np.array([99]), 100, 0.5, 0.25)
    meter.inserted(1_000, 2.0)
    meter.refused()
    selector = PrioritizedSelector(8, 0, exponent=1.0, epsilon=1e-6)
    metrics = meter.read(selector, 0, 8, sampled_transitions=7)
    assert metrics.sample_age.count == 4
    assert metrics.sample_age.sum == 4 * (0 + 3 + 10 + 1)
    assert metrics.seconds == {"insert": 2.0, "sample": 33 * 0.25, "update": 33 * 0.5}
    assert (metrics.inserted_bytes, metrics.sampled_bytes, metrics.repeated_pushes) == (1_000, 70, 1)
    assert metrics.priorities is None


def test_only_a_status_that_was_asked_for_carries_figures(shard_of: ShardOf) -> None:
    shard = shard_of(np.ones(16))
    reply = shard.exchange(None, SampleRequest((4, 4)))
    assert reply.status.metrics is None
    metrics = metrics_of(shard)
    assert metrics.sample_age.count == 8
    assert metrics.sampled_bytes == 8 * sum(
        array[0].nbytes
        for array in (
            *reply.windows.values(),
            reply.action,
            reply.reward,
            reply.discount,
            reply.policy_version,
            reply.keys,
            reply.probability,
        )
    )
    assert metrics.inserted_bytes > 16 * (8 + 4 * 4)
    assert all(seconds > 0.0 for phase, seconds in metrics.seconds.items() if phase != "update")


@pytest.mark.parametrize(
    ("priorities", "maximum", "effective"),
    [
        ([2.0] * 8, 2.0, 1.0),
        # One row has all the mass but for a little: as if there were one of eight.
        ([1e6] + [1e-6] * 7, 1e6, 1 / 8),
        # (1 + 2 + 3 + 4)^2 / (4 * 30)
        ([1.0, 2.0, 3.0, 4.0], 4.0, 100 / 120),
    ],
)
def test_how_even_priorities_are(
    shard_of: ShardOf, priorities: list[float], maximum: float, effective: float
) -> None:
    summary = metrics_of(shard_of(np.array(priorities))).priorities
    assert summary is not None
    assert summary.maximum == pytest.approx(maximum)
    assert summary.effective_ratio == pytest.approx(effective, rel=1e-6)


def test_uniform_sampling_is_even(shard_of: ShardOf) -> None:
    summary = metrics_of(shard_of(np.arange(1.0, 9.0), sampling="uniform")).priorities
    assert summary is not None
    assert (summary.maximum, summary.effective_ratio) == (1.0, 1.0)


def test_priorities_are_gone_through_once_in_a_while_only(shard_of: ShardOf) -> None:
    shard = shard_of(np.ones(4))
    first = metrics_of(shard).priorities
    shard.update_priorities(PriorityUpdate(np.arange(4), np.full(4, 9.0, np.float32)))
    assert metrics_of(shard).priorities is first
