"""Several ranks: threads of this process here, each with a learner, connected as processes are.

Tests learner/shared_sums.py too.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec

from learner import shared_sums
from learner.config import LearnerConfig, NetworkSpec, part_sizes
from learner.core import DivergedError, LearnReport
from learner.loop import Learner
from learner.ranks import (
    ONE_RANK,
    Intent,
    RankLostError,
    Ranks,
    SeveralRanks,
    are_equal,
    from_first_,
    transitions_of_others,
)
from replay_service import host_memory
from replay_service.messages import Minibatch
from replay_service.shard import EmptyShardError

BUILDING = threading.Lock()
HOST = "127.0.0.1"
# More than any gradient here, so that gradients of 64 kB and more go through memory.
GRADIENT_BYTES = 1 << 20
VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)
IMAGES = image_spec((2, 36, 36), 3, stack=2)
SMALL = LearnerConfig(hidden_sizes=(16,), batch_size=10, target_update_updates=3)
CASES: dict[str, tuple[NetworkSpec, LearnerConfig]] = {
    "mlp": (VECTOR, SMALL),
    "huber, sgd": (VECTOR, replace(SMALL, loss="huber", optimizer="sgd", target_polyak=0.1)),
    "noisy c51": (VECTOR, replace(SMALL, head="c51", noisy=True, double=True)),
    "iqn": (VECTOR, replace(SMALL, head="iqn", munchausen=True)),
    "qr, normalized": (VECTOR, replace(SMALL, head="qr", normalize_observations=True)),
    "images": (IMAGES, LearnerConfig(batch_size=9)),
}

MinibatchMaker = Callable[..., Minibatch]
Value = TypeVar("Value")


def together(size: int, work: Callable[[SeveralRanks], Value]) -> list[Value]:
    """What each rank's work returns; all are connected before it begins. Raises the first rank's error."""
    ranks = [SeveralRanks(rank, size) for rank in range(size)]
    meeting = ranks[0].open_meeting(HOST)
    results: list[Any] = [None] * size

    def play(rank: SeveralRanks) -> None:
        try:
            rank.meet(meeting, HOST, torch.device("cpu"), GRADIENT_BYTES)
            results[rank.rank] = work(rank)
        except Exception as error:  # noqa: BLE001 - raised below
            results[rank.rank] = error

    threads = [threading.Thread(target=play, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive(), "a rank waits for the others"
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def parts(minibatch: Minibatch, size: int) -> list[Minibatch]:
    """A minibatch split over ranks; the weights of each part are divided by their own maximum."""
    ends = np.cumsum(part_sizes(len(minibatch.action), size))
    split = []
    for end, part in zip(ends, part_sizes(len(minibatch.action), size), strict=True):
        own = slice(end - part, end)
        largest = float(minibatch.weight[own].max())
        split.append(
            replace(
                minibatch,
                windows={name: array[own] for name, array in minibatch.windows.items()},
                action=minibatch.action[own],
                reward=minibatch.reward[own],
                discount=minibatch.discount[own],
                policy_version=minibatch.policy_version[own],
                weight=minibatch.weight[own] / np.float32(largest),
                # The weights of the whole are divided by 50, an arbitrary maximum.
                largest_weight=50.0 * largest,
            )
        )
    return split


def built(*args: Any, **kwargs: Any) -> Learner:
    """A learner; one at a time, because the threads' networks are all initialized by one generator."""
    with BUILDING:
        return Learner(*args, **kwargs)


class Learned:
    """What became of one rank, or of a rank alone."""

    def __init__(self, learner: Learner, report: LearnReport, weights: np.ndarray, source: Any) -> None:
        self.report, self.weights, self.source = report, weights, source
        self.state = learner.step.state()
        self.gradient = learner.step._online.gradient.clone()


def learn(
    spec: NetworkSpec,
    config: LearnerConfig,
    source: Any,
    updates: int,
    ranks: Ranks = ONE_RANK,
    *,
    seconds: float = 1e9,
    queues: bool = False,
) -> Learned:
    learner = built(config, spec, source, seed=3, threads=1, ranks=ranks, queues=queues)
    report, weights = learner.learn(updates, seconds)
    return Learned(learner, report, weights, source)


@pytest.fixture
def whole(random_minibatch: MinibatchMaker) -> Callable[[str], Sequence[Minibatch]]:
    """Minibatches of a case whose largest weight is 1, as a sampler makes them."""

    def make(case: str) -> list[Minibatch]:
        spec, config = CASES[case]
        drawn = [random_minibatch(spec, config.batch_size, seed=seed) for seed in range(4)]
        return [replace(each, weight=each.weight / each.weight.max(), largest_weight=50.0) for each in drawn]

    return make


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_the_averaged_gradient_is_that_of_one_rank(
    case: str, size: int, whole: Callable[[str], Sequence[Minibatch]], list_source: Any
) -> None:
    spec, config = CASES[case]
    minibatches = whole(case)
    one = learn(spec, config, list_source(minibatches), 1)
    split = [parts(each, size) for each in minibatches]
    many = together(
        size,
        lambda ranks: learn(spec, config, list_source([each[ranks.rank] for each in split]), 1, ranks),
    )
    for rank in many:
        assert torch.equal(rank.gradient, many[0].gradient)
        assert (rank.gradient - one.gradient).norm() <= 1e-6 * one.gradient.norm()
        assert rank.report.loss_mean == pytest.approx(one.report.loss_mean, rel=1e-5)
        assert rank.report.samples == one.report.samples == config.batch_size
    td_errors = np.concatenate([rank.source.given_back[0][1] for rank in many])
    np.testing.assert_allclose(td_errors, one.source.given_back[0][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("queues", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_all_ranks_are_equal_bit_for_bit(
    case: str, queues: bool, whole: Callable[[str], Sequence[Minibatch]], list_source: Any
) -> None:
    spec, config = CASES[case]
    split = [parts(each, 2) for each in whole(case)]
    first, second = together(
        2,
        lambda ranks: learn(
            spec, config, list_source([each[ranks.rank] for each in split]), 9, ranks, queues=queues
        ),
    )
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.state.tensors.keys() == second.state.tensors.keys()
    for name, tensor in first.state.tensors.items():
        assert tensor.tobytes() == second.state.tensors[name].tobytes(), name
    assert (first.report.version, second.report.version) == (9, 9)
    assert (first.report.rank, second.report.rank) == (0, 1)
    assert first.report.unequal_weights == second.report.unequal_weights == 0
    assert first.report.seconds["exchange"] > 0.0


@pytest.mark.parametrize("bad", ["reward", "loss"])
def test_what_is_not_finite_on_one_rank_is_skipped_by_all(
    bad: str, whole: Callable[[str], Sequence[Minibatch]], list_source: Any
) -> None:
    spec, config = CASES["huber, sgd"]
    split = [parts(each, 2) for each in whole("huber, sgd")]
    # Of the huge reward only the loss overflows, not the gradient of Huber's loss.
    value = np.nan if bad == "reward" else np.float32(3e38)
    spoiled = replace(split[1][1], reward=np.full(5, value, np.float32))
    sources = [[each[0] for each in split], [split[0][1], spoiled, split[2][1], split[3][1]]]
    ranks = together(2, lambda ranks: learn(spec, config, list_source(sources[ranks.rank]), 3, ranks))
    assert [rank.report.skipped_updates for rank in ranks] == [1, 1]
    assert [rank.report.samples for rank in ranks] == [40, 40]
    assert ranks[0].weights.tobytes() == ranks[1].weights.tobytes()
    assert np.isfinite(ranks[0].weights).all()
    # Nobody's priorities come from it.
    assert [[index for index, _ in rank.source.given_back] for rank in ranks] == [[0, 2, 3]] * 2
    strict = replace(config, max_skipped_updates=1)
    with pytest.raises(DivergedError):
        together(2, lambda ranks: learn(spec, strict, list_source(sources[ranks.rank]), 3, ranks))


def test_a_chunk_ends_for_all_when_one_rank_is_late_or_finds_no_transitions(
    whole: Callable[[str], Sequence[Minibatch]], list_source: Any
) -> None:
    spec, config = CASES["mlp"]
    split = [parts(each, 2) for each in whole("mlp")]

    def late(ranks: SeveralRanks) -> Learned:
        source = list_source([each[ranks.rank] for each in split])
        return learn(spec, config, source, 50, ranks, seconds=0.0 if ranks.rank == 1 else 1e9)

    # Told with the second update, which is the last.
    assert [rank.report.updates for rank in together(2, late)] == [2, 2]

    def short(ranks: SeveralRanks) -> Learned:
        source = list_source([each[ranks.rank] for each in split])
        draw = source.next_minibatch

        def while_there_is(update: int) -> Minibatch:
            if ranks.rank == 1 and update == 3:
                raise EmptyShardError("the only shard was lost")
            minibatch: Minibatch = draw(update)
            return minibatch

        source.next_minibatch = while_there_is
        return learn(spec, config, source, 50, ranks)

    ranks = together(2, short)
    assert [rank.report.updates for rank in ranks] == [3, 3]
    assert ranks[0].weights.tobytes() == ranks[1].weights.tobytes()


def test_unequal_ranks_take_over_the_state_of_the_first(
    whole: Callable[[str], Sequence[Minibatch]], list_source: Any
) -> None:
    spec, config = CASES["noisy c51"]
    split = [parts(each, 2) for each in whole("noisy c51")]

    def drift(ranks: SeveralRanks) -> tuple[list[int], list[np.ndarray]]:
        source = list_source([each[ranks.rank] for each in split])
        learner = built(config, spec, source, seed=ranks.rank, threads=1, ranks=ranks)
        chunks = [learner.learn(2) for _ in range(2)]
        state = learner.step.state().tensors
        return [report.unequal_weights for report, _ in chunks], [chunks[-1][1], *state.values()]

    first, second = together(2, drift)
    assert first[0] == second[0] == [1, 0]
    for one, other in zip(first[1], second[1], strict=True):
        assert one.tobytes() == other.tobytes()


def test_primitives() -> None:
    def exchange(ranks: SeveralRanks) -> tuple[Any, ...]:
        mine = torch.full((3,), float(ranks.rank + 1))
        ranks.sum_(mine)
        firsts = torch.tensor([7, 8], dtype=torch.uint8) + ranks.rank
        from_first_(ranks, firsts)
        agreed = ranks.agree(Intent(ranks.rank == 1, False, 2.0 - ranks.rank))
        gathered = ranks.gather(torch.tensor([ranks.rank, 5]))
        equal = are_equal(ranks, 2**32 - 1), are_equal(ranks, ranks.rank)
        took = ranks.take_seconds(), ranks.take_seconds()
        return mine.tolist(), firsts.tolist(), agreed, gathered.tolist(), equal, took[0] > 0.0, took[1]

    expected = ([3.0] * 3, [7, 8], (True, False, 2.0), [[0, 5], [1, 5]], (True, False), True, 0.0)
    assert together(2, exchange) == [expected, expected]
    assert ONE_RANK.gather(torch.ones(2)).tolist() == [[1.0, 1.0]]
    assert ONE_RANK.agree(Intent(False, True, 2.0)) == (False, True, 2.0)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("machines", [1, 2])
def test_sums_are_those_of_one_process_through_memory_and_through_sockets(
    size: int, machines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty sums of tensors that are too small for the memory, fit into it, or are too large."""
    monkeypatch.setattr(host_memory, "host_name", lambda: str(threading.get_ident() * (machines - 1)))
    draws = np.random.default_rng(size)
    counts = [int(draws.choice([5, 16_384, 20_000, 262_144, 262_145])) for _ in range(50)]
    given = [draws.standard_normal((size, count)).astype(np.float32) for count in counts]

    def sums(ranks: SeveralRanks) -> tuple[bool, list[np.ndarray]]:
        tensors = [torch.tensor(each[ranks.rank]) for each in given]
        for tensor in tensors:
            ranks.sum_(tensor)
        return isinstance(ranks._sums["cpu"], shared_sums._SharedSums), [each.numpy() for each in tensors]

    open_before = len(os.listdir("/proc/self/fd"))
    found = together(size, sums)
    assert [through_memory for through_memory, _ in found] == [machines == 1] * size
    for index, parts in enumerate(given):
        one = found[0][1][index]
        np.testing.assert_allclose(one, parts.sum(axis=0, dtype=np.float64), atol=1e-5)
        assert all(other[index].tobytes() == one.tobytes() for _, other in found)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= open_before + 2 * size


def test_a_sum_through_memory_keeps_what_is_not_finite() -> None:
    def sums(ranks: SeveralRanks) -> int:
        tensor = torch.zeros(20_000)
        tensor[ranks.rank] = float("nan")
        ranks.sum_(tensor)
        return int(torch.isnan(tensor).sum())

    assert together(2, sums) == [2, 2]


def test_the_parts_of_a_batch() -> None:
    assert part_sizes(64, 1) == (64,)
    assert part_sizes(10, 4) == (3, 3, 2, 2)
    assert transitions_of_others(SeveralRanks(2, 4), 10) == (6, 2)
    assert transitions_of_others(ONE_RANK, 10) == (0, 0)
    with pytest.raises(ValueError, match=r"learner.num_learners is 9; each .*batch_size = 8"):
        LearnerConfig(batch_size=8, num_learners=9)


def test_a_rank_whose_connection_ends_is_missed() -> None:
    def leave(ranks: SeveralRanks) -> bool:
        if ranks.rank == 1:
            ranks._sums.clear()
            return True
        with pytest.raises(RankLostError):
            ranks.sum_(torch.ones(100_000))
        return True

    assert together(2, leave) == [True, True]
