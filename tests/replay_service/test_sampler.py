"""The sampler: one distribution at any number of shards, prefetch, and priorities sent back.

Also tests replay_service/staging.py, whose buffers become the sampler's minibatches.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from qfleet_local_transport import LocalTransport

from replay_service import sampler as sampler_module
from replay_service.block import BlockSchema, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.messages import PriorityUpdate, SampleReply, SampleRequest, ShardStatus
from replay_service.prefetch import REQUEST_SECONDS
from replay_service.sampler import ReplaySampler, ShardLostError
from replay_service.shard import EmptyShardError, ReplayShard
from replay_service.sharding import importance_weights

CONFIG = ReplayConfig(
    sampling="prioritized",
    priority_exponent=1.0,
    priority_epsilon=1e-12,
    importance_exponent_start=0.5,
    importance_anneal_updates=100,
)


class _RecordingTransport(LocalTransport):
    """Notes what is sent, and which replies were not collected yet."""

    def __init__(self, shards: list[ReplayShard]) -> None:
        super().__init__(shards)
        self.sent: list[tuple[int, PriorityUpdate | None, SampleRequest]] = []
        self.waiting: list[SampleReply] = []
        self.collected: list[SampleReply] = []

    def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
        self.sent.append((shard, update, request))
        reply = super().exchange(shard, update, request)
        self.waiting.append(reply)
        return reply

    def collect(self, ticket: SampleReply) -> SampleReply:
        self.waiting.remove(ticket)
        self.collected.append(ticket)
        return ticket


def _sampler(
    shards: list[ReplayShard] | LocalTransport,
    *,
    config: ReplayConfig = CONFIG,
    batch_size: int = 8,
    minibatches: int = 3,
    prefetch: int = 0,
    seed: int = 0,
) -> ReplaySampler[SampleReply]:
    return ReplaySampler(
        config,
        LocalTransport(shards) if isinstance(shards, list) else shards,
        batch_size=batch_size,
        minibatches_per_request=minibatches,
        prefetch_requests=prefetch,
        rng=np.random.default_rng(seed),
    )


@pytest.fixture
def three_shards(shard_of: Callable[..., ReplayShard]) -> list[ReplayShard]:
    rng = np.random.default_rng(1)
    return [shard_of(rng.uniform(0.1, 1.0, 20) * 4.0**s, shard=s) for s in range(3)]


def _chi_square_limit(degrees: int) -> float:
    """The value exceeded with chance 3e-7 (five standard deviations), by Wilson and Hilferty 1931."""
    spread = 2.0 / (9.0 * degrees)
    return degrees * (1.0 - spread + 5.0 * math.sqrt(spread)) ** 3


def _equal_draws(masses: np.ndarray, batch_size: int, num_minibatches: int, u: float) -> np.ndarray:
    each = np.array([len(part) for part in np.array_split(np.arange(batch_size), len(masses))])
    return np.tile(each, (num_minibatches, 1))


def _one_random_shard(masses: np.ndarray, batch_size: int, num_minibatches: int, u: float) -> np.ndarray:
    chosen = (int(u * len(masses)) + np.arange(num_minibatches)) % len(masses)
    return batch_size * np.eye(len(masses), dtype=np.int64)[chosen]


@pytest.mark.parametrize(
    ("num_shards", "shortcut"),
    [(1, None), (2, None), (4, None), (7, None), (4, _equal_draws), (4, _one_random_shard)],
)
def test_any_number_of_shards_draws_like_one_buffer(
    shard_of: Callable[..., ReplayShard],
    monkeypatch: pytest.MonkeyPatch,
    num_shards: int,
    shortcut: Callable[..., np.ndarray] | None,
) -> None:
    """Draws of 70 items against p / P; strata make the statistic smaller than chi-square's, never larger."""
    if shortcut is not None:
        monkeypatch.setattr(sampler_module, "allocate", shortcut)
    rng = np.random.default_rng(2)
    # Skewed twice: shards differ in size and in the scale of their priorities.
    borders = np.sort(rng.choice(np.arange(5, 66), num_shards - 1, replace=False))
    priorities = rng.uniform(0.2, 1.0, 70)
    for s, part in enumerate(np.split(priorities, borders)):
        part *= 3.0 ** (s % 3)
    parts = np.split(priorities, borders)
    shards = [shard_of(part, shard=s) for s, part in enumerate(parts)]
    sampler = _sampler(shards, batch_size=15, minibatches=5, prefetch=1)
    drawn: Counter[float] = Counter()
    for update in range(4000):
        drawn.update(sampler.next_minibatch(update).reward.tolist())
    observed = np.array([drawn[1000 * s + i] for s, part in enumerate(parts) for i in range(len(part))])
    expected = 4000 * 15 * priorities / priorities.sum()
    assert observed.sum() == 4000 * 15
    statistic = ((observed - expected) ** 2 / expected).sum()
    if shortcut is None:
        assert statistic < _chi_square_limit(69)
    else:
        assert statistic > 10.0 * _chi_square_limit(69)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_several_ranks_together_draw_like_one_buffer(
    shard_of: Callable[..., ReplayShard], num_ranks: int
) -> None:
    """Each draws its part of 16; their weights, divided by one maximum, make weighted means unbiased."""
    rng = np.random.default_rng(3)
    parts = [rng.uniform(0.2, 1.0, size) * 3.0**s for s, size in enumerate((7, 40, 23))]
    priorities = np.concatenate(parts)
    shards = [shard_of(part, shard=s) for s, part in enumerate(parts)]
    sizes = [len(part) for part in np.array_split(np.arange(16), num_ranks)]
    exact = dataclasses.replace(CONFIG, importance_exponent_start=1.0)
    samplers = [
        _sampler(shards, config=exact, batch_size=size, minibatches=5, prefetch=1, seed=rank)
        for rank, size in enumerate(sizes)
    ]
    drawn: Counter[float] = Counter()
    means, steps = [], 3000
    for update in range(steps):
        minibatches = [sampler.next_minibatch(update) for sampler in samplers]
        largest = max(each.largest_weight for each in minibatches)
        total = 0.0
        for each in minibatches:
            drawn.update(each.reward.tolist())
            weights = each.weight * (each.largest_weight / largest)
            total += float((weights * each.reward).sum())
        assert max((each.weight * (each.largest_weight / largest)).max() for each in minibatches) == (
            pytest.approx(1.0)
        )
        means.append(total * largest / 16 / 70)
    values = np.array([1000.0 * s + i for s, part in enumerate(parts) for i in range(len(part))])
    observed = np.array([drawn[value] for value in values])
    expected = steps * 16 * priorities / priorities.sum()
    assert observed.sum() == steps * 16
    assert ((observed - expected) ** 2 / expected).sum() < _chi_square_limit(69)
    assert abs(np.mean(means) - values.mean()) < 4.0 * np.std(means) / math.sqrt(steps)


def test_minibatches_are_the_replies_in_order(three_shards: list[ReplayShard]) -> None:
    transport = _RecordingTransport(three_shards)
    masses = np.array([shard.status().mass for shard in three_shards])
    sampler = _sampler(transport)
    for k in range(3):
        minibatch = sampler.next_minibatch(50 * k)
        counts = [reply.counts[k] for reply in transport.collected]
        begins = [sum(reply.counts[:k]) for reply in transport.collected]
        slices = [slice(begin, begin + count) for begin, count in zip(begins, counts, strict=True)]
        for name in ("action", "reward", "discount", "policy_version"):
            parts = [getattr(r, name)[at] for r, at in zip(transport.collected, slices, strict=True)]
            np.testing.assert_array_equal(getattr(minibatch, name), np.concatenate(parts))
            assert getattr(minibatch, name).dtype == parts[0].dtype
        windows = [r.windows["observation"][at] for r, at in zip(transport.collected, slices, strict=True)]
        np.testing.assert_array_equal(minibatch.windows["observation"], np.concatenate(windows))
        q = np.concatenate(
            [
                masses[s] / masses.sum() * reply.probability[at]
                for s, (reply, at) in enumerate(zip(transport.collected, slices, strict=True))
            ]
        )
        np.testing.assert_allclose(minibatch.weight, importance_weights(q, 0.5 + 0.25 * k), rtol=1e-6)
        assert minibatch.weight.dtype == np.float32
        assert minibatch.weight.max() == 1.0
        assert minibatch.index == k
    assert len(transport.sent) == 3


def test_staging_is_reused_writable_and_apart_from_the_replies(three_shards: list[ReplayShard]) -> None:
    transport = _RecordingTransport(three_shards[:1])
    sampler = _sampler(transport, minibatches=2, prefetch=1)
    seen = []
    for update in range(4):
        minibatch = sampler.next_minibatch(update)
        arrays = [*minibatch.windows.values(), minibatch.action, minibatch.reward, minibatch.policy_version]
        for array in arrays:
            assert array.flags.writeable
            assert array.flags.c_contiguous
        for reply in transport.collected + transport.waiting:
            assert not np.shares_memory(minibatch.windows["observation"], reply.windows["observation"])
        seen.append(minibatch)
    # Two minibatches of a request stand side by side; the next request takes the same memory.
    assert not np.shares_memory(seen[0].reward, seen[1].reward)
    assert np.shares_memory(seen[0].reward, seen[2].reward)
    assert np.shares_memory(seen[0].windows["observation"], seen[2].windows["observation"])


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_requests_kept_in_flight(three_shards: list[ReplayShard], prefetch: int) -> None:
    transport = _RecordingTransport(three_shards)
    sampler = _sampler(transport, minibatches=2, prefetch=prefetch)
    assert transport.sent == []
    for update in range(6):
        sampler.next_minibatch(update)
        assert len(transport.waiting) == 3 * prefetch
        assert len(transport.collected) == 3 * (update // 2 + 1)


def test_priorities_reach_their_transitions(three_shards: list[ReplayShard]) -> None:
    transport = _RecordingTransport(three_shards)
    sampler = _sampler(transport, minibatches=2)
    wanted: dict[float, float] = {}
    before = three_shards[0].status().mass
    for update in range(2):
        minibatch = sampler.next_minibatch(update)
        # Each new error follows from the transition's identity, so a mix-up of transitions or shards shows.
        td_errors = minibatch.reward + 1.0 + update
        wanted |= dict(zip(minibatch.reward.tolist(), td_errors.tolist(), strict=True))
        sampler.give_back(minibatch.index, td_errors)
        td_errors[:] = -1.0
    assert three_shards[0].status().mass == before
    assert all(update is None for _, update, _ in transport.sent)
    sampler.next_minibatch(2)
    held: dict[float, float] = {}
    for shard, update, _ in transport.sent[3:]:
        if update is not None:
            held |= dict(zip((update.keys + 1000 * shard).tolist(), update.td_errors.tolist(), strict=True))
    assert held == wanted
    ids = np.array(sorted(wanted))
    for s, shard in enumerate(three_shards):
        reply = shard.exchange(None, SampleRequest((2000,)))
        for i in ids[ids // 1000 == s]:
            chances = reply.probability[reply.reward == i]
            assert chances == pytest.approx(wanted[i] / reply.status.mass, rel=1e-6)


def test_errors_may_come_back_after_the_next_request(three_shards: list[ReplayShard]) -> None:
    transport = _RecordingTransport(three_shards)
    sampler = _sampler(transport, minibatches=1)
    minibatch = sampler.next_minibatch(0)
    rewards = minibatch.reward.tolist()
    sampler.next_minibatch(1)
    sampler.give_back(minibatch.index, np.array(rewards, np.float32))
    sampler.flush()
    sent = [
        (key + 1000 * s, e)
        for s, u, _ in transport.sent
        if u
        for key, e in zip(u.keys, u.td_errors, strict=True)
    ]
    assert sent == [(reward, reward) for reward in rewards]


def test_flush_sends_what_is_left_once(three_shards: list[ReplayShard]) -> None:
    transport = _RecordingTransport(three_shards)
    sampler = _sampler(transport, minibatches=1, prefetch=2)
    minibatch = sampler.next_minibatch(0)
    sampler.give_back(minibatch.index, np.full(8, 7.0, np.float32))
    in_flight = len(transport.waiting)
    sampler.flush()
    assert len(transport.waiting) == in_flight
    sent = [update for _, update, _ in transport.sent if update is not None]
    assert sum(len(update.keys) for update in sent) == 8
    sampler.flush()
    sampler.next_minibatch(1)
    assert sum(update is not None for _, update, _ in transport.sent) == len(sent)


def test_give_back_refuses_strangers(three_shards: list[ReplayShard]) -> None:
    sampler = _sampler(three_shards)
    minibatch = sampler.next_minibatch(0)
    with pytest.raises(ValueError, match="shape"):
        sampler.give_back(minibatch.index, np.ones((8, 1), np.float32))
    with pytest.raises(ValueError, match="minibatch 1 is not waiting"):
        sampler.give_back(1, np.ones(8, np.float32))
    sampler.give_back(minibatch.index, np.ones(8, np.float32))
    with pytest.raises(ValueError, match="minibatch 0 is not waiting"):
        sampler.give_back(minibatch.index, np.ones(8, np.float32))


def test_uniform_sampling_has_no_weights_or_priorities(shard_of: Callable[..., ReplayShard]) -> None:
    config = ReplayConfig(sampling="uniform")
    transport = _RecordingTransport(
        [shard_of(np.ones(n), shard=s, sampling="uniform") for s, n in enumerate((5, 15))]
    )
    sampler = _sampler(transport, config=config, minibatches=1)
    for update in range(3):
        minibatch = sampler.next_minibatch(update)
        np.testing.assert_array_equal(minibatch.weight, np.ones(8, np.float32))
        # Quarters of the mass: exactly two of eight transitions come from the small shard.
        assert (minibatch.reward < 1000).sum() == 2
        sampler.give_back(minibatch.index, np.ones(8, np.float32))
    sampler.flush()
    assert all(update is None for _, update, _ in transport.sent)


def test_an_empty_shard_is_left_out_until_it_fills(
    shard_of: Callable[..., ReplayShard], random_block: Callable[..., TransitionBlock]
) -> None:
    schema = BlockSchema((FrameField("observation", "<f4", (2,)),), 1, 1)
    empty = ReplayShard(CONFIG, schema, shard=1, incarnation=0, capacity=20, seed=np.random.SeedSequence(0))
    sampler = _sampler([empty], minibatches=1)
    with pytest.raises(EmptyShardError, match="no shard is known to hold transitions"):
        sampler.next_minibatch(0)
    sampler = _sampler([shard_of(np.ones(20)), empty], minibatches=1)
    assert (sampler.next_minibatch(0).reward < 1000).all()
    block = random_block(
        schema, np.random.default_rng(0), num_transitions=20, num_frames=21, priority=np.ones(20, np.float32)
    )
    block.reward[:] = 1000.0
    empty.insert(encode(block))
    # The request after the insert still splits by the old masses but brings the new one back.
    assert (sampler.next_minibatch(1).reward < 1000).all()
    assert (sampler.next_minibatch(2).reward < 1000).sum() == 4


def test_statuses_are_the_newest(three_shards: list[ReplayShard]) -> None:
    sampler = _sampler(three_shards, minibatches=1)
    assert sampler.statuses() == ()
    for update in range(3):
        sampler.next_minibatch(update)
        assert sampler.statuses() == tuple(shard.status() for shard in three_shards)


def test_same_seeds_same_minibatches(shard_of: Callable[..., ReplayShard]) -> None:
    def run(prefetch: int) -> list[np.ndarray]:
        shards = [shard_of(np.arange(1.0, 30.0) * (s + 1), shard=s, seed=3) for s in range(2)]
        sampler = _sampler(shards, prefetch=prefetch)
        rewards = []
        for update in range(7):
            minibatch = sampler.next_minibatch(update)
            rewards.append(minibatch.reward.copy())
            sampler.give_back(minibatch.index, np.abs(minibatch.reward) / 100.0)
        return rewards

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(2))


class _MortalTransport(_RecordingTransport):
    """Shards in `dead` answer nobody, whatever was asked of them before."""

    def __init__(self, shards: list[ReplayShard]) -> None:
        super().__init__(shards)
        self.dead: set[int] = set()

    def collect(self, ticket: SampleReply) -> SampleReply:
        if ticket.status.shard in self.dead:
            raise ShardLostError("killed by the test")
        return super().collect(ticket)

    def status(self, shard: int) -> ShardStatus:
        if shard in self.dead:
            raise ShardLostError("killed by the test")
        return super().status(shard)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_lost_shard_is_left_out_at_once(
    three_shards: list[ReplayShard], shard_of: Callable[..., ReplayShard], prefetch: int
) -> None:
    transport = _MortalTransport(three_shards)
    sampler = _sampler(transport, minibatches=1, prefetch=prefetch)
    before = sampler.next_minibatch(0)
    assert (before.reward >= 2000).any()
    transport.dead.add(2)
    masses = np.array([shard.status().mass for shard in three_shards[:2]])
    transport.collected.clear()
    minibatch = sampler.next_minibatch(0)
    assert (minibatch.reward < 2000).all()
    q = np.concatenate(
        [masses[r.status.shard] / masses.sum() * r.probability for r in transport.collected[-2:]]
    )
    np.testing.assert_allclose(minibatch.weight, importance_weights(q, 0.5), rtol=1e-6)
    # Priorities of its transitions have nowhere to go; the others' leave with the next request.
    sampler.give_back(before.index, np.ones(8, np.float32))
    sent = len(transport.sent)
    for update in range(4):
        assert (sampler.next_minibatch(update).reward < 2000).all()
    assert 2 not in {shard for shard, _, _ in transport.sent[sent:]}
    sampler.flush()
    # Another shard in its place: it counts from the next request on.
    transport.dead.clear()
    three_shards[2] = shard_of(np.full(20, 100.0), shard=2)
    transport.shards = three_shards
    sampler.shard_replaced(2)
    assert (sampler.next_minibatch(0).reward >= 2000).sum() >= 7


def test_with_no_shard_left_there_is_no_minibatch_until_one_has_transitions(
    shard_of: Callable[..., ReplayShard],
) -> None:
    shards = [shard_of(np.ones(20))]
    transport = _MortalTransport(shards)
    sampler = _sampler(transport, prefetch=2)
    sampler.next_minibatch(0)
    transport.dead.add(0)
    for update in (1, 2):
        sampler.next_minibatch(update)
    for _ in range(2):
        with pytest.raises(EmptyShardError, match="no shard is known to hold transitions"):
            sampler.next_minibatch(3)
    transport.dead.clear()
    sampler.shard_replaced(0)
    assert sampler.next_minibatch(3).index == 3


def test_a_reply_that_is_lost_is_no_lost_shard(three_shards: list[ReplayShard]) -> None:
    transport = _MortalTransport(three_shards)
    sampler = _sampler(transport, minibatches=1)
    sampler.next_minibatch(0)
    collect, failures = transport.collect, iter([True])

    def lose_one(ticket: SampleReply) -> SampleReply:
        if ticket.status.shard == 2 and next(failures, False):
            raise ShardLostError("its node's memory is gone")
        return collect(ticket)

    transport.collect = lose_one  # type: ignore[method-assign]
    assert (sampler.next_minibatch(0).reward >= 2000).any()


def test_a_shard_may_be_replaced_before_the_first_minibatch(three_shards: list[ReplayShard]) -> None:
    sampler = _sampler(_MortalTransport(three_shards))
    sampler.shard_replaced(1)
    assert len(sampler.next_minibatch(0).reward) == 8
    assert [status.shard for status in sampler.statuses()] == [0, 1, 2]


def test_an_adaptive_sampler_changes_its_requests_without_losing_a_minibatch(
    three_shards: list[ReplayShard],
) -> None:
    class Counted(LocalTransport):
        def __init__(self, shards: list[ReplayShard]) -> None:
            super().__init__(shards)
            self.asked: list[int] = []

        def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
            if shard == 0:
                self.asked.append(len(request.counts))
            return super().exchange(shard, update, request)

    transport = Counted(three_shards)
    sampler = ReplaySampler(
        ReplayConfig(sampling="prioritized"),
        transport,
        batch_size=8,
        minibatches_per_request=32,
        prefetch_requests=3,
        rng=np.random.default_rng(0),
        adaptive=True,
    )
    taken = []

    def take(count: int) -> None:
        for _ in range(count):
            minibatch = sampler.next_minibatch(len(taken))
            assert len(minibatch.action) == 8
            assert minibatch.transitions_per_shard is not None
            assert minibatch.transitions_per_shard.sum() == 8
            sampler.give_back(minibatch.index, np.abs(minibatch.reward))
            taken.append(minibatch.index)

    take(5)
    assert set(transport.asked) == {4}
    sampler.adapt(update_seconds=REQUEST_SECONDS / 30)
    take(40)
    assert transport.asked[-1] == 30
    sampler.adapt(update_seconds=REQUEST_SECONDS / 3)
    take(100)
    assert transport.asked[-1] == 3
    assert taken == list(range(145))
    assert set(transport.asked) == {4, 30, 3}


def test_without_prefetch_the_size_of_requests_stays(three_shards: list[ReplayShard]) -> None:
    sampler = ReplaySampler(
        ReplayConfig(),
        LocalTransport(three_shards),
        batch_size=8,
        minibatches_per_request=3,
        prefetch_requests=0,
        rng=np.random.default_rng(0),
        adaptive=True,
    )
    for update in range(7):
        sampler.adapt(update_seconds=REQUEST_SECONDS)
        assert sampler.next_minibatch(update).requested_at_update == update // 3 * 3


def test_a_minibatch_tells_how_long_the_sampler_waited_for_it(
    three_shards: list[ReplayShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(sampler_module.time, "monotonic", lambda: now[0])

    class Slow(LocalTransport):
        def collect(self, ticket: SampleReply) -> SampleReply:
            now[0] += 0.25
            return ticket

    sampler = ReplaySampler(
        ReplayConfig(),
        Slow(three_shards),
        batch_size=8,
        minibatches_per_request=2,
        prefetch_requests=1,
        rng=np.random.default_rng(0),
    )
    waited = [sampler.next_minibatch(k).waited_seconds for k in range(4)]
    assert waited == [0.75, 0.0, 0.75, 0.0]
