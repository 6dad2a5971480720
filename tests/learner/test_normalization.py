"""Running statistics: golden numbers, the two sides' agreement, and learning on badly scaled observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch import to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.loop import Learner
from learner.normalization import Moments, ObservationNormalizer, merged, moments_of_samples, tail_size
from learner.skipped_updates import SkippedUpdate
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep
from replay_service.block import FrameField
from replay_service.messages import Minibatch

CPU = torch.device("cpu")
VECTOR = NetworkSpec((2,), "float32", None, 3, stack=1)
STACKED = NetworkSpec((3, 2), "<f4", None, 3, stack=3)
CONFIG = LearnerConfig(normalize_observations=True, hidden_sizes=(16, 8))


def nothing(size: int) -> Moments:
    zeros = torch.zeros(size, dtype=torch.float64)
    return Moments(torch.zeros(1, dtype=torch.float64), zeros, zeros)


def test_golden_numbers() -> None:
    # 1, 3 then 5, 7, 9: mean 5, squared deviations 16 + 4 + 0 + 4 + 16.
    moments = merged(nothing(1), moments_of_samples(torch.tensor([[1.0], [3.0]])))
    assert [part.tolist() for part in moments] == [[2.0], [2.0], [2.0]]
    moments = merged(moments, moments_of_samples(torch.tensor([[5.0], [7.0], [9.0]])))
    assert [part.tolist() for part in moments] == [[5.0], [5.0], [40.0]]


def test_normalized_values() -> None:
    normalizer = ObservationNormalizer(VECTOR, CPU)
    raw = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    torch.testing.assert_close(normalizer(raw), raw)  # nothing is known yet
    normalizer.absorb(raw)
    # Means 2 and 7, deviations 1 and 0: a value that never changed is 0 until it does, then at the limit.
    given = torch.tensor([[1.0, 7.0], [2.5, 8.0], [99.0, 7.0], [2.0, -1.0]])
    expected = torch.tensor([[-1.0, 0.0], [0.5, 10.0], [10.0, 0.0], [0.0, -10.0]])
    torch.testing.assert_close(normalizer(given), expected)
    assert given[0].tolist() == [1.0, 7.0]


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(-1e4, 1e4), st.integers(0, 99))
def test_parts_merge_to_the_moments_of_the_whole(sizes: list[int], center: float, seed: int) -> None:
    samples = torch.from_numpy(np.random.default_rng(seed).normal(center, 0.01, (sum(sizes), 2)))
    moments = nothing(2)
    for part in samples.split(sizes):
        moments = merged(moments, moments_of_samples(part))
    assert moments.size.item() == sum(sizes)
    torch.testing.assert_close(moments.mean, samples.mean(dim=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        moments.m2, (samples - samples.mean(dim=0)).square().sum(dim=0), rtol=1e-7, atol=1e-9
    )


def test_the_frames_of_a_stack_share_their_statistics() -> None:
    normalizer = ObservationNormalizer(STACKED, CPU)
    window = torch.from_numpy(np.random.default_rng(0).normal(5.0, 3.0, (50, 3, 2))).float()
    normalizer.absorb(window)
    frames = window.reshape(-1, 2).double()
    expected = torch.cat((frames.mean(0), 1 / frames.std(0, correction=0)))
    torch.testing.assert_close(normalizer.tail, expected.float())
    assert tail_size(STACKED) == len(normalizer.tail) == 4


def test_only_float_parts_are_normalized() -> None:
    parts = (
        FrameField("camera", "|u1", (4, 4)),
        FrameField("a", "<f4", (2,)),
        FrameField("on", "|b1", (3,)),
        FrameField("b", "<f4", ()),
    )
    spec = NetworkSpec((), "|V", None, 3, 1, parts, pixels=("camera",))
    normalizer = ObservationNormalizer(spec, CPU)
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "camera": torch.from_numpy(rng.integers(256, size=(64, 4, 4), dtype=np.uint8)),
        "a": torch.from_numpy(rng.normal([1e3, -2.0], [1e-1, 4.0], (64, 2))).float(),
        "on": torch.from_numpy(rng.random((64, 3)) < 0.5),
        "b": torch.from_numpy(rng.normal(-7.0, 100.0, 64)).float(),
    }
    normalizer.absorb(given)
    normalized: Any = normalizer(given)
    assert normalized["camera"] is given["camera"]
    assert normalized["on"] is given["on"]
    for name in ("a", "b"):
        assert normalized[name].shape == given[name].shape
        torch.testing.assert_close(
            normalized[name].mean(0), torch.zeros(given[name].shape[1:]), atol=1e-2, rtol=0
        )
        torch.testing.assert_close(
            normalized[name].std(0), torch.ones(given[name].shape[1:]), atol=2e-2, rtol=0
        )


@pytest.mark.parametrize("spec", [VECTOR, STACKED], ids=["vector", "stacked"])
def test_a_policy_acts_on_what_the_learner_sees(
    spec: NetworkSpec, random_minibatch: Callable[..., Minibatch]
) -> None:
    step = UpdateStep(spec, CONFIG, seed=0)
    minibatch = random_minibatch(spec, 32)
    scaled = minibatch.windows["observation"] * np.float32([1e3, 1e-3]) + np.float32([-400.0, 0.25])
    for _ in range(3):
        step(to_batch(replace(minibatch, windows={"observation": scaled}), spec.stack, step.device))
    flat = step.weights()
    frame_size = 2
    in_torch = TorchPolicy(spec, CONFIG, threads=1)
    without = TorchPolicy(spec, replace(CONFIG, normalize_observations=False), threads=1)
    in_torch.load(flat)
    without.load(flat[: -2 * frame_size])
    observations = scaled[:, 0] if spec.stack == 1 else scaled[:, :3]
    expected = in_torch.q_values(np.ascontiguousarray(observations))
    frames = scaled[:, 0] if spec.stack == 1 else scaled[:, :3].reshape(-1, 2)
    by_hand = (observations - frames.mean(0)) / frames.std(0)
    by_hand = np.clip(by_hand, -10, 10).astype(np.float32)
    np.testing.assert_allclose(without.q_values(by_hand), expected, rtol=1e-3, atol=1e-3)


def test_a_skipped_update_leaves_the_statistics_alone(random_minibatch: Callable[..., Minibatch]) -> None:
    step = UpdateStep(VECTOR, CONFIG, seed=0)
    good = random_minibatch(VECTOR, 8)
    step(to_batch(good, 1, CPU))
    before = step.state(), step.weights()
    window = good.windows["observation"].copy()
    window[3, 0, 1] = np.nan
    assert isinstance(step(to_batch(replace(good, windows={"observation": window}), 1, CPU)), SkippedUpdate)
    assert step.weights().tobytes() == before[1].tobytes()
    for name, tensor in before[0].tensors.items():
        np.testing.assert_array_equal(step.state().tensors[name], tensor)


def test_a_state_goes_on_bit_for_bit(list_source: Any, random_minibatch: Callable[..., Minibatch]) -> None:
    minibatches = [random_minibatch(VECTOR, 16, seed) for seed in range(6)]

    def learner(first: int, seed: int) -> Learner:
        return Learner(CONFIG, VECTOR, list_source(minibatches[first:]), seed=seed, threads=1)

    whole, first, second = learner(0, 0), learner(0, 0), learner(3, 7)
    whole.learn(6)
    first.learn(3)
    state = first.step.state()
    assert state.tensors["observation_mean"].dtype == np.float64
    second.step.restore(state)
    second.learn(3)
    assert second.step.weights().tobytes() == whole.step.weights().tobytes()
    assert first.step.weights()[-4:].tobytes() != whole.step.weights()[-4:].tobytes()


def test_a_state_without_statistics_is_refused() -> None:
    plain = UpdateStep(VECTOR, replace(CONFIG, normalize_observations=False), seed=0)
    with pytest.raises(ValueError, match="observation_mean"):
        UpdateStep(VECTOR, CONFIG, seed=0).restore(plain.state())


@pytest.mark.parametrize(("normalize", "learns"), [(True, True), (False, False)])
def test_badly_scaled_observations_are_learned_only_normalized(
    normalize: bool, learns: bool, list_source: Any
) -> None:
    # The value is the product of two signs. One is told in thousandths, the other in thousands about an
    # offset, so that a network that takes them raw cannot see the first beside the second.
    rng = np.random.default_rng(0)
    minibatches = []
    for index in range(20):
        signs = rng.choice([-1.0, 1.0], size=(64, 2))
        noisy = signs + rng.normal(0.0, 0.1, signs.shape)
        window = (noisy * [1e-3, 1e3] + [0.0, 5e3]).astype(np.float32)
        minibatches.append(
            Minibatch(
                windows={"observation": np.stack([window, window], axis=1)},
                action=np.zeros(64, np.int32),
                reward=signs.prod(axis=1).astype(np.float32),
                discount=np.zeros(64, np.float32),
                policy_version=np.zeros(64, np.int64),
                weight=np.ones(64, np.float32),
                index=index,
            )
        )
    config = LearnerConfig(hidden_sizes=(32, 32), normalize_observations=normalize, learning_rate=3e-3)
    learner = Learner(config, VECTOR, list_source(minibatches), seed=0, threads=1)
    learner.learn(400)
    report, _ = learner.learn(20)
    # Rewards of -1 and 1 have variance 1: that is the loss of a network that knows nothing.
    assert (report.loss_mean < 0.05) == learns
    assert learns or report.loss_mean > 0.9
