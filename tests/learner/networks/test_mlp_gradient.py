from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from learner.networks.build import Mlp
from learner.networks.mlp_gradient import FlatMlp

CPU = torch.device("cpu")


def autograd_gradient(network: nn.Module, observations: Tensor, output_gradient: Tensor) -> Tensor:
    outputs = network(observations)
    return parameters_to_vector(torch.autograd.grad(outputs, list(network.parameters()), output_gradient))


def relative_difference(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("sizes", [(4, 128, 128, 2), (6, 9, 3), (5, 16, 16, 16, 4)])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_mlp_passes_by_hand_equal_autograd(sizes: tuple[int, ...], batch_size: int) -> None:
    torch.manual_seed(batch_size)
    network = Mlp(sizes)
    twin, flat = copy.deepcopy(network), FlatMlp(network, CPU)
    for _ in range(2):
        obs_tm1, obs_t = torch.randn(2, batch_size, sizes[0])
        output_gradient = torch.randn(batch_size, sizes[-1])
        expected = autograd_gradient(twin, obs_tm1, output_gradient)
        torch.testing.assert_close(flat.evaluate(obs_t), twin(obs_t).detach())

        torch.testing.assert_close(flat.forward(obs_tm1), twin(obs_tm1).detach())
        flat.backward(output_gradient)
        assert relative_difference(flat.gradient, expected) < 1e-5

        flat.gradient.fill_(torch.nan)
        q_tm1, q_t = flat.forward_pair(obs_tm1, obs_t)
        torch.testing.assert_close(q_tm1, twin(obs_tm1).detach())
        torch.testing.assert_close(q_t, twin(obs_t).detach())
        flat.backward(output_gradient)
        assert relative_difference(flat.gradient, expected) < 1e-5


def test_mlp_gradient_is_the_finite_difference_along_random_directions() -> None:
    torch.manual_seed(0)
    flat = FlatMlp(Mlp((3, 8, 8, 2)), CPU)
    observations, output_gradient = torch.randn(16, 3), torch.randn(16, 2)

    def value() -> float:
        return float((flat.evaluate(observations).double() * output_gradient).sum())

    flat.forward(observations)
    flat.backward(output_gradient)
    start = flat.weights.clone()
    for _ in range(5):
        direction = torch.randn_like(start)
        flat.weights.copy_(start + 1e-4 * direction)
        higher = value()
        flat.weights.copy_(start - 1e-4 * direction)
        gradient_along = (higher - value()) / 2e-4
        assert float(flat.gradient @ direction) == pytest.approx(gradient_along, rel=2e-2)
