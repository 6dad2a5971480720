"""Spectral norm: the layer against singular values, and its way through updates, actors and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from learner.batch import to_batch
from learner.config import LearnerConfig
from learner.core import LearnerState
from learner.named_weights import network_facts, seeded_network
from learner.networks.build import build_network
from learner.networks.spectral import SpectralConv2d, spectral_layers
from learner.skipped_updates import SkippedUpdate
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep
from replay_service.messages import Minibatch

IMAGES = image_spec((12, 12, 2), 3, layout="HWC")
CONFIG = LearnerConfig(network="impala_cnn", spectral_norm=True, learning_rate=0.01, batch_size=8)


def layer_of(weight: Tensor, iterations: int = 50) -> SpectralConv2d:
    channels_out, channels_in, size, _ = weight.shape
    layer = SpectralConv2d(channels_in, channels_out, kernel_size=size, padding=size // 2).to(weight.dtype)
    layer.weight.data = weight
    for _ in range(iterations):
        layer.iterate()
    return layer


def test_singular_values_by_hand() -> None:
    # Two inputs, two outputs, one pixel: the matrix is diag(3, 1), sigma 3 (its Frobenius norm is sqrt(10)).
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
    torch.testing.assert_close(layer_of(weight).normalized(), weight / 3)
    # One output of 2 x 2 pixels is a row of four: its norm is sqrt(10), though the kernel's as a matrix is 3.
    kernel = torch.tensor([3.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(layer_of(kernel).normalized(), kernel / 10**0.5)


def test_the_norm_is_the_largest_singular_value_of_outputs_by_inputs() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    largest = float(np.linalg.svd(weight.reshape(6, 36).numpy(), compute_uv=False)[0])
    torch.testing.assert_close(layer_of(weight, 200).normalized(), weight / largest, rtol=1e-4, atol=1e-6)


def test_one_iteration_by_its_definition() -> None:
    layer = SpectralConv2d(3, 4, kernel_size=3, padding=1)
    matrix, left = layer.weight.detach().flatten(1).numpy(), layer.left.numpy().copy()
    assert np.linalg.norm(left) == pytest.approx(1.0)
    right = matrix.T @ left
    right /= np.linalg.norm(right)
    left = matrix @ right
    left /= np.linalg.norm(left)
    layer.iterate()
    np.testing.assert_allclose(layer.right, right, atol=1e-6)
    np.testing.assert_allclose(layer.left, left, atol=1e-6)
    sigma = float(left @ matrix @ right)
    torch.testing.assert_close(layer.normalized().detach(), layer.weight.detach() / sigma)


def test_gradient_is_the_finite_difference_through_sigma() -> None:
    # At the singular vectors themselves sigma has the derivative left right^T; as a constant it has none.
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=generator)
    inputs = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator)
    pull = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=generator)
    layer = layer_of(weight.clone(), 500)
    (gradient,) = torch.autograd.grad((layer(inputs) * pull).sum(), layer.weight)

    def value(shifted: Tensor) -> float:
        sigma = np.linalg.svd(shifted.reshape(2, 18).numpy(), compute_uv=False)[0]
        return float((functional.conv2d(inputs, shifted / sigma, padding=1) * pull).sum())

    for flat in range(0, weight.numel(), 5):
        shift = torch.zeros_like(weight)
        shift.view(-1)[flat] = 1e-6
        difference = (value(weight + shift) - value(weight - shift)) / 2e-6
        assert float(gradient.reshape(-1)[flat]) == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_only_residual_convolutions_have_it_and_parameters_are_the_same() -> None:
    network, plain = (
        build_network(IMAGES, CONFIG),
        build_network(IMAGES, replace(CONFIG, spectral_norm=False)),
    )
    layers = spectral_layers(network)
    assert [layer.weight.shape[:2] for layer in layers] == [(16, 16)] * 4 + [(32, 32)] * 8
    shapes = [[(name, p.shape) for name, p in each.named_parameters()] for each in (network, plain)]
    assert shapes[0] == shapes[1]
    assert not spectral_layers(plain)


def updated(minibatches: list[Minibatch], config: LearnerConfig = CONFIG, **given: Any) -> UpdateStep:
    step = UpdateStep(IMAGES, config, seed=0, **given)
    for minibatch in minibatches:
        step.finish(step.start(to_batch(minibatch, 1, step.device)))
    return step


@pytest.fixture
def minibatches(random_minibatch: Callable[..., Minibatch]) -> list[Minibatch]:
    return [random_minibatch(IMAGES, 8, seed=seed) for seed in range(4)]


def test_normalized_weights_travel(minibatches: list[Minibatch]) -> None:
    step = updated(minibatches)
    state = step.state().tensors
    # The network as its state describes it, against the plain one with the weights that travel.
    online = build_network(IMAGES, CONFIG)
    vector_to_parameters(torch.tensor(state["online"]), online.parameters())
    vectors = torch.tensor(state["spectral_vectors"])
    for layer in spectral_layers(online):
        sizes = [len(layer.left), len(layer.right), vectors.numel() - len(layer.left) - len(layer.right)]
        layer.left, layer.right, vectors = vectors.split(sizes)
    assert not vectors.numel()
    weights = step.weights()
    assert (weights != state["online"]).any()
    observations = torch.randint(256, (5, 12, 12, 2), dtype=torch.uint8)
    policy = TorchPolicy(IMAGES, CONFIG, threads=1)
    policy.load(weights)
    q_values = policy.q_values(observations.numpy())
    np.testing.assert_allclose(q_values, online(observations).detach(), rtol=1e-4, atol=1e-5)
    exported = seeded_network(IMAGES, CONFIG)
    assert not spectral_layers(exported)
    vector_to_parameters(torch.tensor(weights), exported.parameters())
    np.testing.assert_allclose(exported(observations).detach(), q_values, rtol=1e-4, atol=1e-5)


def test_travelling_weights_have_norm_one(minibatches: list[Minibatch]) -> None:
    network = seeded_network(IMAGES, CONFIG)
    vector_to_parameters(torch.tensor(updated(minibatches).weights()), network.parameters())
    blocks = [p for name, p in network.named_parameters() if "layers" in name and name.endswith("weight")]
    assert len(blocks) == 12
    largest = [np.linalg.svd(p.detach().flatten(1).numpy(), compute_uv=False)[0] for p in blocks]
    np.testing.assert_allclose(largest, 1.0, atol=0.1)


@pytest.mark.parametrize("target", [{"target_update_updates": 2}, {"target_polyak": 1.0}], ids=str)
def test_the_target_network_holds_normalized_weights(
    minibatches: list[Minibatch], target: dict[str, Any]
) -> None:
    step = updated(minibatches, replace(CONFIG, **target))
    np.testing.assert_allclose(step.state().tensors["target"], step.weights(), rtol=1e-6, atol=1e-7)
    assert step.take_metrics().target_gap < 0.01


def test_one_iteration_an_update_however_often_the_network_is_asked(minibatches: list[Minibatch]) -> None:
    before = updated([], replace(CONFIG, double=True))
    after = updated(minibatches[:1], replace(CONFIG, double=True))
    vectors = [torch.tensor(step.state().tensors["spectral_vectors"]) for step in (before, after)]
    network = build_network(IMAGES, CONFIG)
    vector_to_parameters(torch.tensor(after.state().tensors["online"]), network.parameters())
    layer = spectral_layers(network)[0]
    layer.left, layer.right = vectors[0][:16].clone(), vectors[0][16 : 16 + 144].clone()
    layer.iterate()
    torch.testing.assert_close(torch.cat((layer.left, layer.right)), vectors[1][:160])


@pytest.mark.parametrize("queues", [False, True])
def test_a_state_goes_on_bit_for_bit(minibatches: list[Minibatch], queues: bool) -> None:
    whole, first = (updated(part, queues=queues) for part in (minibatches, minibatches[:2]))
    second = UpdateStep(IMAGES, CONFIG, seed=9, queues=queues)
    second.restore(first.state())
    np.testing.assert_array_equal(second.weights(), first.weights())
    for minibatch in minibatches[2:]:
        second.finish(second.start(to_batch(minibatch, 1, second.device)))
    assert whole.weights().tobytes() == second.weights().tobytes()
    plain = UpdateStep(IMAGES, replace(CONFIG, spectral_norm=False), seed=0)
    with pytest.raises(ValueError, match="spectral_vectors"):
        plain.restore(first.state())


def test_a_bad_update_changes_nothing(minibatches: list[Minibatch]) -> None:
    step = updated(minibatches[:1])
    before: LearnerState = step.state()
    bad = replace(minibatches[1], reward=np.full(8, np.nan, np.float32))
    assert isinstance(step(to_batch(bad, 1, step.device)), SkippedUpdate)
    assert all(step.state().tensors[name].tobytes() == old.tobytes() for name, old in before.tensors.items())


def test_a_learner_begins_with_weights_that_travelled(minibatches: list[Minibatch]) -> None:
    weights = updated(minibatches).weights()
    step = UpdateStep(IMAGES, CONFIG, seed=5)
    step.start_from(weights)
    np.testing.assert_allclose(step.weights(), weights, rtol=0.02, atol=1e-4)
    np.testing.assert_array_equal(step.state().tensors["target"], step.weights())
    # Weights that were learned without the norm would mean another function with it.
    assert network_facts(IMAGES, CONFIG) != network_facts(IMAGES, replace(CONFIG, spectral_norm=False))


def test_bfloat16_leaves_the_norm_in_float32() -> None:
    layer = SpectralConv2d(3, 4, kernel_size=3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.normalized(), layer.normalized().float())
        inside = layer.normalized()
    assert torch.equal(inside, layer.normalized())
    assert parameters_to_vector(layer.parameters()).dtype == torch.float32
