"""A shard's metrics: bytes, seconds, ages of drawn transitions, and how even the priorities are."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest

from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
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
    meter = ShardMeter(num_shards=4, transition_bytes=10, capacity=8)
    meter.drawn(np.array([100, 97, 90]), 100)
    for _ in range(31):  # not looked at
        meter.drawn(np.array([0]), 100)
    meter.drawn(np.array([99]), 100)
    selector = PrioritizedSelector(8, 0, exponent=1.0, epsilon=1e-6)
    metrics = meter.read(selector, count=0)
    assert metrics.sample_age.count == 4
    assert metrics.sample_age.sum == 4 * (0 + 3 + 10 + 1)
    assert metrics.sampled_bytes == 10 * (3 + 31 + 1)
    assert metrics.priorities is None


def test_evicted_draws_by_hand() -> None:
    meter = ShardMeter(num_shards=1, transition_bytes=10, capacity=4)
    meter.first_counted_key = 1  # key 0 came back from a journal
    meter.drawn(np.array([0, 2, 2, 3]), 3)
    meter.drawn(np.array([2]), 3)
    meter.evicted(0, 3)
    meter.drawn(np.array([6, 3]), 6)  # key 6 lies where key 2 lay
    meter.evicted(3, 7)
    metrics = meter.read(PrioritizedSelector(4, 0, exponent=1.0, epsilon=1e-6), count=0)
    # Draws of keys 1 to 6: 0, 3, 2, 0, 0, 1.
    assert metrics.evicted_draws.counts[:4] == (3, 1, 1, 1)  # 0, 1, 2, 3 to 4
    assert (metrics.evicted_draws.sum, metrics.evicted_draws_square_sum) == (6.0, 14.0)
    assert meter.evicted_transitions == 7


@pytest.mark.parametrize("reuse", [1, 2, 4])
def test_uniform_draws_leave_as_many_undrawn_as_chance_does(
    random_block: Callable[..., TransitionBlock], reuse: int
) -> None:
    """A transition that is drawn `reuse` times on average is never drawn with chance e^-reuse, and the draws
    have an effective ratio of reuse / (1 + reuse): mean^2 / (mean^2 + variance) of a Poisson variable."""
    schema = BlockSchema((FrameField("observation", "<f4", (1,)),), 1, 1)
    shard = ReplayShard(
        ReplayConfig(sampling="uniform"),
        schema,
        shard=0,
        incarnation=0,
        capacity=500,
        seed=np.random.SeedSequence(reuse),
    )
    rng = np.random.default_rng(0)
    for sequence in range(200):
        block = random_block(schema, rng, num_transitions=50, num_frames=51, sequence=sequence)
        shard.insert(encode(block))
        if sequence >= 10:
            shard.exchange(None, SampleRequest((50,) * reuse))
    draws = metrics_of(shard).evicted_draws
    # Those of the first ten blocks were drawn less often.
    assert draws.sum / draws.count == pytest.approx(reuse, rel=0.06)
    assert draws.counts[0] / draws.count == pytest.approx(np.exp(-reuse), abs=0.03)
    ratio = draws.sum**2 / (draws.count * metrics_of(shard).evicted_draws_square_sum)
    assert ratio == pytest.approx(reuse / (1 + reuse), abs=0.04)


def test_seconds_are_those_of_the_shards_work(shard_of: ShardOf) -> None:
    now = [0.0]

    def later() -> float:
        now[0] += 1.0
        return now[0]

    with mock.patch("replay_service.phase_timer.perf_counter", later):
        shard = shard_of(np.ones(4))
        for _ in range(3):
            shard.exchange(None, SampleRequest((2,)))
        # Each phase lasts from one reading of the clock to the next; idle seconds are not reported.
        assert metrics_of(shard).seconds == {"insert": 1.0, "sample": 3.0, "update": 3.0}


def test_only_a_status_that_was_asked_for_carries_metrics(shard_of: ShardOf) -> None:
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


@pytest.mark.parametrize(
    ("priorities", "maximum", "effective"),
    [
        ([2.0] * 8, 2.0, 1.0),
        # One transition has nearly all the mass: as if only one of eight were held.
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
    shard.exchange(PriorityUpdate(np.arange(4), np.full(4, 9.0, np.float32)), SampleRequest(()))
    assert metrics_of(shard).priorities is first
