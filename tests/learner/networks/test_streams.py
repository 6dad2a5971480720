"""Implicit quantiles: embedding and network against their definitions; dueling is tested in test_build.

Tests learner/fractions.py, too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.config import LearnerConfig, NetworkSpec
from learner.fractions import drawn, midpoints
from learner.networks.build import build_network
from learner.networks.flat import FlatNetwork
from learner.networks.noisy import redraw_noise
from learner.networks.streams import CosineEmbedding, ImplicitQuantiles

VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)
IMAGES = NetworkSpec((10, 10, 4), "|b1", None, 3, stack=1, image_layouts={"observation": "HWC"})


def test_midpoints_and_draws() -> None:
    assert midpoints(4, like=torch.zeros(1)).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert midpoints(2, like=torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    draws = drawn(3000, 2, torch.Generator().manual_seed(0))
    assert draws.shape == (3000, 2)
    assert float(draws.min()) >= 0.0
    np.testing.assert_allclose(draws.mean(dim=0), 0.5, atol=0.02)
    np.testing.assert_allclose(draws.var(dim=0), 1 / 12, atol=0.005)
    assert abs(np.corrcoef(draws.numpy().T)[0, 1]) < 0.1


def test_cosines_by_hand() -> None:
    embedding = CosineEmbedding(num_cosines=3, num_features=3)
    with torch.no_grad():
        embedding.linear.weight.copy_(torch.eye(3))
        embedding.linear.bias.copy_(torch.tensor([0.0, 0.0, 0.25]))
    # cos 0, cos(pi tau), cos(2 pi tau): i counts from 0, so that the first is 1 for every tau.
    fractions = torch.tensor([[0.0, 0.5], [1 / 3, 1.0]])
    expected = [[[1.0, 1.0, 1.25], [1.0, 0.0, 0.0]], [[1.0, 0.5, 0.0], [1.0, 0.0, 1.25]]]
    torch.testing.assert_close(embedding(fractions), torch.tensor(expected), rtol=0, atol=1e-6)


def in_loops(network: ImplicitQuantiles, observations: Tensor, fractions: Tensor) -> Tensor:
    """One transition and one fraction after the other, as section 3 of the paper describes it."""
    outputs = torch.zeros(len(observations), 3, fractions.shape[1])
    for b in range(len(observations)):
        features = network.torso(observations[b : b + 1])[0]
        for n in range(fractions.shape[1]):
            tau = float(fractions[b, n])
            cosines = torch.tensor([math.cos(math.pi * i * tau) for i in range(6)])
            linear = network.embedding.linear
            product = features * torch.relu(linear.weight @ cosines + linear.bias)
            advantage = network.advantage(product.unsqueeze(0))[0]
            if network.value is not None:
                advantage = advantage - advantage.mean() + network.value(product.unsqueeze(0))[0]
            outputs[b, :, n] = advantage
    return outputs


@pytest.mark.parametrize("switches", [{}, {"dueling": True, "noisy": True, "layer_norm": True}], ids=str)
@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "images"])
def test_quantiles_are_those_of_the_paper(spec: NetworkSpec, switches: dict[str, Any]) -> None:
    config = LearnerConfig(
        network="mlp" if spec is VECTOR else "minatar_cnn",
        head="iqn",
        iqn_cosines=6,
        iqn_acting_quantiles=5,
        hidden_sizes=(8, 9),
        **switches,
    )
    network = build_network(spec, config)
    assert isinstance(network, ImplicitQuantiles)
    redraw_noise(network, torch.Generator().manual_seed(1))
    observations = torch.randn(2, 4) if spec is VECTOR else torch.rand(2, 10, 10, 4) < 0.3
    fractions = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.7, 0.0, 1.0]])
    outputs = network(observations, fractions)
    assert outputs.shape == (2, 3, 4)
    torch.testing.assert_close(outputs, in_loops(network, observations, fractions), rtol=1e-4, atol=1e-5)
    # Without fractions: the fixed ones, the same for every observation.
    fixed = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(network(observations), network(observations, fixed.expand(2, 5)))


def test_gradient_is_the_finite_difference_along_random_directions() -> None:
    torch.manual_seed(0)
    config = LearnerConfig(head="iqn", iqn_cosines=6, hidden_sizes=(8, 9), dueling=True)
    flat = FlatNetwork(build_network(VECTOR, config).double(), torch.device("cpu"))
    embedding = flat.module.embedding
    assert isinstance(embedding, CosineEmbedding)
    observations, fractions = torch.randn(5, 4), torch.rand(5, 4, dtype=torch.float64)
    pull = torch.randn(5, 3, 4, dtype=torch.float64)
    flat.module.torso.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    # Features are float32 by definition; the torso's first layer must take them in float64 here.
    flat.module.torso.layers.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    flat.forward(observations, fractions)
    flat.backward(pull)
    for _ in range(5):
        direction = torch.randn_like(flat.weights)
        values = []
        for step in (1e-6, -2e-6):
            flat.weights.add_(step * direction)
            values.append(float((flat.evaluate(observations, fractions) * pull).sum()))
        flat.weights.add_(1e-6 * direction)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(flat.gradient @ direction), rel=1e-5)
