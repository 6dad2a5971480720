from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from learner.config import LearnerConfig, NetworkSpec
from learner.networks.build import Mlp, build_network
from learner.networks.flat import FlatNetwork
from learner.networks.mlp_gradient import FlatMlp

CPU = torch.device("cpu")
IMAGES = NetworkSpec((2, 36, 40), "uint8", None, 3, stack=2)
TABLE = NetworkSpec((), "int64", 5, 3, stack=1)


def autograd_gradient(network: nn.Module, observations: Tensor, gradient: Tensor) -> Tensor:
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(network(observations), parameters, grad_outputs=gradient)
    return torch.cat([gradient.flatten() for gradient in gradients])


def relative_difference(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


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
        gradient = torch.randn(6, 3)
        torch.testing.assert_close(flat.forward(observations), twin(observations).detach())
        flat.backward(gradient)
        expected = autograd_gradient(twin, observations, gradient)
        assert relative_difference(flat.gradient, expected) < 1e-5


@pytest.mark.parametrize("sizes", [(4, 128, 128, 2), (6, 9, 3), (5, 16, 16, 16, 4)])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_mlp_passes_by_hand_equal_autograd(sizes: tuple[int, ...], batch_size: int) -> None:
    torch.manual_seed(batch_size)
    network = Mlp(sizes)
    twin, flat = copy.deepcopy(network), FlatMlp(network, CPU)
    for _ in range(2):
        obs_tm1, obs_t = torch.randn(2, batch_size, sizes[0])
        gradient = torch.randn(batch_size, sizes[-1])
        expected = autograd_gradient(twin, obs_tm1, gradient)
        torch.testing.assert_close(flat.evaluate(obs_t), twin(obs_t).detach())

        torch.testing.assert_close(flat.forward(obs_tm1), twin(obs_tm1).detach())
        flat.backward(gradient)
        assert relative_difference(flat.gradient, expected) < 1e-5

        flat.gradient.fill_(torch.nan)
        q_tm1, q_t = flat.forward_pair(obs_tm1, obs_t)
        torch.testing.assert_close(q_tm1, twin(obs_tm1).detach())
        torch.testing.assert_close(q_t, twin(obs_t).detach())
        flat.backward(gradient)
        assert relative_difference(flat.gradient, expected) < 1e-5


def test_mlp_gradient_is_the_finite_difference_along_random_directions() -> None:
    torch.manual_seed(0)
    flat = FlatMlp(Mlp((3, 8, 8, 2)), CPU)
    observations, gradient = torch.randn(16, 3), torch.randn(16, 2)

    def value() -> float:
        return float((flat.evaluate(observations).double() * gradient).sum())

    flat.forward(observations)
    flat.backward(gradient)
    start = flat.weights.clone()
    for _ in range(5):
        direction = torch.randn_like(start)
        flat.weights.copy_(start + 1e-4 * direction)
        higher = value()
        flat.weights.copy_(start - 1e-4 * direction)
        gradient_along = (higher - value()) / 2e-4
        assert float(flat.gradient @ direction) == pytest.approx(gradient_along, rel=2e-2)


def test_evaluating_between_the_passes_changes_no_gradient() -> None:
    for flat in (FlatNetwork(Mlp((3, 4, 2)), CPU), FlatMlp(Mlp((3, 4, 2)), CPU)):
        observations, gradient = torch.randn(5, 3), torch.randn(5, 2)
        flat.forward(observations)
        flat.backward(gradient)
        expected = flat.gradient.clone()
        flat.forward(observations)
        flat.evaluate(torch.randn(7, 3))
        flat.backward(gradient)
        torch.testing.assert_close(flat.gradient, expected, rtol=0, atol=0)
