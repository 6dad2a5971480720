from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from learner.networks.noisy import NoisyLinear, redraw_noise


def drawn(layer: NoisyLinear, seed: int) -> torch.Tensor:
    """f(e) of the generator's next normals, inputs first."""
    normal = torch.randn(
        layer.in_features + layer.out_features, generator=torch.Generator().manual_seed(seed)
    )
    return torch.sign(normal) * torch.sqrt(torch.abs(normal))


def test_it_is_the_paper_s_layer_with_the_noisy_weights_written_out() -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(3, 2)
    with torch.no_grad():
        for sigma in (layer.weight_sigma, layer.bias_sigma):
            sigma.uniform_(-1.0, 1.0)  # each its own, so that a mixed-up axis shows
    layer.redraw(torch.Generator().manual_seed(7))
    noise = drawn(layer, 7)
    f_in, f_out = noise[:3], noise[3:]
    weight = layer.weight + layer.weight_sigma * torch.outer(f_out, f_in)
    bias = layer.bias + layer.bias_sigma * f_out
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(layer(inputs), inputs @ weight.t() + bias)


def test_without_noise_it_is_its_mean() -> None:
    layer = NoisyLinear(3, 2)
    inputs = torch.randn(5, 3)
    expected = nn.functional.linear(inputs, layer.weight, layer.bias)
    torch.testing.assert_close(layer(inputs), expected, rtol=0.0, atol=0.0)


def test_it_begins_with_the_paper_s_sizes() -> None:
    layer = NoisyLinear(100, 4)
    assert torch.equal(layer.weight_sigma, torch.full((4, 100), 0.05))
    assert torch.equal(layer.bias_sigma, torch.full((4,), 0.05))
    for mean in (layer.weight, layer.bias):
        assert mean.abs().max() <= 1 / math.sqrt(100)
    assert layer.weight.abs().max() > 0.09
    # Noise is no state: it must not be saved, and travels nowhere.
    assert {"weight", "bias", "weight_sigma", "bias_sigma"} == set(layer.state_dict())


def test_every_layer_gets_noise_of_its_own_in_the_same_memory() -> None:
    network = nn.Sequential(NoisyLinear(4, 4), nn.ReLU(), NoisyLinear(4, 4))
    generator = torch.Generator().manual_seed(0)
    redraw_noise(network, generator)
    first, second = network[0], network[2]
    assert isinstance(first, NoisyLinear)
    assert isinstance(second, NoisyLinear)
    assert not torch.equal(first.noise_in, second.noise_in)
    place, old = first.noise_in.data_ptr(), first.noise_in.clone()
    outputs = first(torch.ones(2, 4))
    outputs.sum().backward()
    assert first.weight_sigma.grad is not None
    # d sum / d sigma_ij = f(e_out)_i f(e_in)_j x_j.
    gradient = first.weight_sigma.grad.sum(0)
    torch.testing.assert_close(gradient / gradient[0], old / old[0])
    # A recorded update reads the noise where it was.
    redraw_noise(network, generator)
    assert not torch.equal(first.noise_in, old)
    assert first.noise_in.data_ptr() == place


def test_noise_has_the_moments_of_its_definition() -> None:
    # f(e) has mean 0 and variance E|e| = sqrt(2 / pi).
    layer = NoisyLinear(20_000, 1)
    layer.redraw(torch.Generator().manual_seed(0))
    assert abs(float(layer.noise_in.mean())) < 0.02
    np.testing.assert_allclose(float(layer.noise_in.var()), math.sqrt(2 / math.pi), rtol=0.03)
