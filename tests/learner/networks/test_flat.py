from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from learner.config import LearnerConfig, NetworkSpec
from learner.networks.build import Mlp, build_network
from learner.networks.flat import FlatNetwork
from learner.networks.mlp_gradient import FlatMlp

CPU = torch.device("cpu")
IMAGES = NetworkSpec((2, 36, 40), "uint8", None, 3, stack=2)
TABLE = NetworkSpec((), "int64", 5, 3, stack=1)


def test_weights_share_memory_with_the_network() -> None:
    network = Mlp((3, 4, 2))
    before = parameters_to_vector(network.parameters()).detach().clone()
    flat = FlatNetwork(network, CPU)
    torch.testing.assert_close(flat.weights, before, rtol=0, atol=0)
    flat.weights.zero_()
    for parameter in network.parameters():
        assert not parameter.any()


@pytest.mark.parametrize("spec", [IMAGES, TABLE], ids=["images", "table"])
def test_backward_fills_the_vector_afresh_each_time(spec: NetworkSpec) -> None:
    network = build_network(spec, LearnerConfig())
    twin, flat = copy.deepcopy(network), FlatNetwork(network, CPU)
    for seed in (0, 1):
        torch.manual_seed(seed)
        high = 256 if spec is IMAGES else 5
        dtype = torch.uint8 if spec is IMAGES else torch.int64
        observations = torch.randint(high, (6, *spec.observation_shape), dtype=dtype)
        output_gradient = torch.randn(6, 3)
        torch.testing.assert_close(flat.forward(observations), twin(observations).detach())
        flat.backward(output_gradient)
        pieces = torch.autograd.grad(twin(observations), list(twin.parameters()), output_gradient)
        expected = torch.cat([piece.flatten() for piece in pieces])
        assert (flat.gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def test_evaluating_between_the_passes_changes_no_gradient() -> None:
    for flat in (FlatNetwork(Mlp((3, 4, 2)), CPU), FlatMlp(Mlp((3, 4, 2)), CPU)):
        observations, output_gradient = torch.randn(5, 3), torch.randn(5, 2)
        flat.forward(observations)
        flat.backward(output_gradient)
        expected = flat.gradient.clone()
        flat.forward(observations)
        flat.evaluate(torch.randn(7, 3))
        flat.backward(output_gradient)
        torch.testing.assert_close(flat.gradient, expected, rtol=0, atol=0)
