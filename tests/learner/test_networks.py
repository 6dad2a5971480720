from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from learner.config import LearnerConfig, NetworkSpec
from learner.networks import build_network


def test_mlp_is_the_numpy_forward_pass_over_its_flat_vector() -> None:
    # What actors do: cut the vector into W1 [out, in], b1, W2, b2, ... and multiply.
    spec = NetworkSpec((2, 3), "float32", None, 2, stack=1)
    network = build_network(spec, LearnerConfig(hidden_sizes=(5, 7)))
    flat = parameters_to_vector(network.parameters()).detach().numpy()
    observations = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)
    hidden, offset = observations.reshape(9, 6), 0
    for fan_in, fan_out in [(6, 5), (5, 7), (7, 2)]:
        weight = flat[offset : offset + fan_in * fan_out].reshape(fan_out, fan_in)
        offset += weight.size
        hidden = hidden @ weight.T + flat[offset : offset + fan_out]
        offset += fan_out
        if fan_out != 2:
            hidden = np.maximum(hidden, 0.0)
    assert offset == flat.size
    np.testing.assert_allclose(network(torch.from_numpy(observations)).detach(), hidden, rtol=1e-4, atol=1e-6)


def test_mlp_takes_bytes_as_fractions_of_255_and_other_numbers_as_they_are() -> None:
    network = build_network(NetworkSpec((3,), "uint8", None, 2, stack=1), LearnerConfig())
    whole = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    torch.testing.assert_close(network(whole), network(torch.tensor([[0.0, 0.2, 1.0]])))
    torch.testing.assert_close(network(whole.double()), network(whole.float()))


def test_mlp_of_a_scalar_observation() -> None:
    network = build_network(NetworkSpec((), "float32", None, 3, stack=1), LearnerConfig())
    assert network(torch.zeros(8)).shape == (8, 3)


def test_table_starts_at_zero_and_is_read_row_by_row() -> None:
    network = build_network(NetworkSpec((), "int64", 3, 2, stack=1), LearnerConfig())
    states = torch.tensor([2, 0, 2])
    torch.testing.assert_close(network(states), torch.zeros(3, 2))
    vector_to_parameters(torch.arange(6.0), network.parameters())
    torch.testing.assert_close(network(states), torch.tensor([[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]))


def test_nature_cnn_has_the_sizes_of_the_paper() -> None:
    network = build_network(NetworkSpec((4, 84, 84), "uint8", None, 6, stack=4), LearnerConfig())
    sizes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert sizes[0::2] == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512)]


@pytest.mark.parametrize(
    ("shape", "stack", "to_channels_first"),
    [
        ((4, 44, 36), 4, (0, 1, 2, 3)),
        ((44, 36, 3), 1, (0, 3, 1, 2)),
        ((3, 44, 36), 1, (0, 1, 2, 3)),
        ((2, 44, 36, 3), 2, (0, 1, 4, 2, 3)),
    ],
)
def test_nature_cnn_sees_the_same_image_in_every_layout(
    shape: tuple[int, ...], stack: int, to_channels_first: tuple[int, ...]
) -> None:
    network = build_network(NetworkSpec(shape, "uint8", None, 2, stack), LearnerConfig())
    images = np.random.default_rng(0).integers(256, size=(5, *shape), dtype=np.uint8)
    plain = images.transpose(to_channels_first).reshape(5, -1, 44, 36).astype(np.float32) / 255
    first, *others = [parameter.detach() for parameter in network.parameters()]
    bias, w2, b2, w3, b3, w4, b4, w5, b5 = others
    conv2d, relu = torch.nn.functional.conv2d, torch.relu
    hidden = relu(conv2d(torch.from_numpy(plain), first, bias, stride=4))
    hidden = relu(conv2d(relu(conv2d(hidden, w2, b2, stride=2)), w3, b3))
    expected = relu(hidden.flatten(1) @ w4.T + b4) @ w5.T + b5
    torch.testing.assert_close(network(torch.from_numpy(images)).detach(), expected, rtol=1e-4, atol=1e-5)


def test_nature_cnn_works_down_to_36_pixels_and_refuses_less() -> None:
    config = LearnerConfig(network="nature_cnn")
    network = build_network(NetworkSpec((36, 36), "uint8", None, 2, stack=1), config)
    assert network(torch.zeros(2, 36, 36, dtype=torch.uint8)).shape == (2, 2)
    with pytest.raises(ValueError, match="at least 36 x 36"):
        build_network(NetworkSpec((36, 35), "uint8", None, 2, stack=1), config)
