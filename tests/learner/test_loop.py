from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig, NetworkSpec
from learner.core import DivergedError
from learner.loop import Learner
from replay_service.messages import Minibatch

MinibatchMaker = Callable[..., Minibatch]

VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)
IMAGES = NetworkSpec((2, 36, 36), "uint8", None, 3, stack=2)


@pytest.fixture
def vector_minibatches(random_minibatch: MinibatchMaker) -> list[Minibatch]:
    return [random_minibatch(VECTOR, 16, seed) for seed in range(5)]


def test_report_counts_what_was_done(list_source: Any, vector_minibatches: list[Minibatch]) -> None:
    config = LearnerConfig(learning_rate=1.0, learning_rate_end=0.0, learning_rate_decay_updates=100)
    source = list_source(vector_minibatches)
    learner = Learner(config, VECTOR, source, seed=0, threads=1)
    assert learner.weights()[0] == 0
    learner.learn(2)
    report, weights = learner.learn(3)
    assert (report.version, report.updates, report.samples) == (5, 3, 48)
    assert learner.weights()[0] == 5
    np.testing.assert_array_equal(weights, learner.weights()[1])
    assert report.learning_rate == pytest.approx(0.96)  # of the last update, after four others
    lags = [version - vector_minibatches[version].policy_version for version in (2, 3, 4)]
    assert report.policy_lag_mean == pytest.approx(np.mean(lags))
    assert set(report.seconds) == {"wait", "update", "other"}
    assert min(report.seconds.values()) >= 0.0
    assert source.asked == [0, 1, 2, 3, 4]
    assert [index for index, _ in source.given_back] == [0, 1, 2, 3, 4]
    chunk = [td_errors for _, td_errors in source.given_back[2:]]
    assert report.td_error_mean == pytest.approx(float(np.mean(chunk)), rel=1e-5)
    weighted = [
        float((minibatch.weight * td_errors**2).mean())
        for minibatch, td_errors in zip(vector_minibatches[2:], chunk, strict=True)
    ]
    assert report.loss_mean == pytest.approx(float(np.mean(weighted)), rel=1e-5)


def test_returned_weights_are_a_copy_of_their_own(
    list_source: Any, vector_minibatches: list[Minibatch]
) -> None:
    learner = Learner(LearnerConfig(), VECTOR, list_source(vector_minibatches), seed=0, threads=1)
    _, weights = learner.learn(1)
    before = weights.copy()
    learner.learn(1)
    np.testing.assert_array_equal(weights, before)
    weights[:] = 0.0
    assert learner.weights()[1].any()


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "images"])
def test_same_seed_and_minibatches_give_the_same_bits(
    spec: NetworkSpec, list_source: Any, random_minibatch: MinibatchMaker
) -> None:
    minibatches = [random_minibatch(spec, 8, seed) for seed in range(4)]

    def learned(seed: int) -> np.ndarray:
        torch.manual_seed(np.random.default_rng().integers(2**31).item())  # must not matter
        flat: np.ndarray = Learner(
            LearnerConfig(), spec, list_source(minibatches), seed=seed, threads=1
        ).learn(8)[1]
        return flat

    assert learned(3).tobytes() == learned(3).tobytes()
    assert learned(3).tobytes() != learned(4).tobytes()


def test_the_global_generator_is_left_alone(list_source: Any) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Learner(LearnerConfig(), VECTOR, list_source([]), seed=9, threads=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_restored_learner_goes_on_bit_for_bit(
    optimiser: Any, list_source: Any, vector_minibatches: list[Minibatch]
) -> None:
    config = LearnerConfig(optimiser=optimiser, target_update_updates=3, learning_rate_decay_updates=20)
    first = Learner(config, VECTOR, list_source(vector_minibatches), seed=0, threads=1)
    first.learn(5)  # between two target copies, so that online and target differ
    state = first.state()
    expected, weights = first.learn(5)

    second = Learner(config, VECTOR, list_source(vector_minibatches), seed=1, threads=1)
    second.learn(2)
    second.restore(state)
    second._source = list_source(vector_minibatches)
    report, resumed = second.learn(5)
    assert resumed.tobytes() == weights.tobytes()
    assert replace(report, seconds={}) == replace(expected, seconds={})


@pytest.mark.parametrize("reward", [np.nan, np.inf])
def test_divergence_is_an_error(reward: float, list_source: Any, random_minibatch: MinibatchMaker) -> None:
    good = random_minibatch(VECTOR, 16)
    bad = replace(good, reward=np.full(16, reward, np.float32))
    source = list_source([good, bad])
    with pytest.raises(DivergedError, match="at update 1, largest TD error"):
        Learner(LearnerConfig(), VECTOR, source, seed=0, threads=1).learn(2)
    assert len(source.given_back) == 1  # the shards never hear of it


def test_an_infinite_loss_of_finite_gradient_is_divergence(
    list_source: Any, table_minibatch: MinibatchMaker
) -> None:
    # (2e19)^2 overflows float32; the slopes, 2.5e18 each, do not.
    minibatch = table_minibatch([(state, 0, 2e19, 0.0, 0) for state in range(16)])
    spec = NetworkSpec((), "int64", 16, 1, stack=1)
    with pytest.raises(DivergedError, match=r"mean loss and mean gradient norm inf, 1e\+19"):
        Learner(LearnerConfig(), spec, list_source([minibatch]), seed=0, threads=1).learn(1)


def test_an_infinite_gradient_of_finite_loss_is_divergence(
    list_source: Any, random_minibatch: MinibatchMaker
) -> None:
    minibatch = random_minibatch(VECTOR, 16)
    huge = replace(minibatch, windows={"observation": minibatch.windows["observation"] * np.float32(1e25)})
    learner = Learner(LearnerConfig(loss="huber"), VECTOR, list_source([huge]), seed=0, threads=1)
    with pytest.raises(DivergedError, match=r"mean loss and mean gradient norm \d.*, inf"):
        learner.learn(1)


@pytest.mark.parametrize("stack", [1, 3])
def test_windows_of_n_step_rows(stack: int, list_source: Any, random_minibatch: MinibatchMaker) -> None:
    # W = 2 stack: what lies between the two observations must not matter.
    shape = (4,) if stack == 1 else (stack, 4)
    spec = NetworkSpec(shape, "float32", None, 3, stack)
    base = random_minibatch(spec, 8)
    ends = np.random.default_rng(0).normal(size=(8, 2 * stack, 4)).astype(np.float32)
    padded = np.insert(ends, stack, np.float32(1e6), axis=1)
    flats = [
        Learner(
            LearnerConfig(),
            spec,
            list_source([replace(base, windows={"observation": window})]),
            seed=0,
            threads=1,
        ).learn(1)[1]
        for window in (ends, padded)
    ]
    assert flats[0].tobytes() == flats[1].tobytes()


def test_threads_are_set_and_checked(list_source: Any) -> None:
    Learner(LearnerConfig(), VECTOR, list_source([]), seed=0, threads=2)
    assert torch.get_num_threads() == 2
    Learner(LearnerConfig(), VECTOR, list_source([]), seed=0, threads=1)
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="at least 1"):
        Learner(LearnerConfig(), VECTOR, list_source([]), seed=0, threads=0)


def test_an_empty_chunk_is_refused(list_source: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Learner(LearnerConfig(), VECTOR, list_source([]), seed=0, threads=1).learn(0)
