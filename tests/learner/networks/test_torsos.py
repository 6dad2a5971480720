"""Torsos against the papers' sizes and against the same layers written out.

Tests learner/networks/inputs.py, too, through which torsos read observations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec
from torch import nn

from learner.config import LearnerConfig
from learner.named_weights import seeded_network
from learner.networks.build import build_network
from learner.networks.torsos import DenseTorso, ImageTorso, JoinedTorso, ResidualBlock


def test_nature_cnn_has_the_sizes_of_the_paper() -> None:
    network = build_network(image_spec((4, 84, 84), 6, stack=4), LearnerConfig())
    sizes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert sizes[0::2] == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512)]


@pytest.mark.parametrize(
    ("shape", "stack", "layout", "to_channels_first"),
    [
        ((4, 44, 36), 4, "HW", (0, 1, 2, 3)),
        ((44, 36, 3), 1, "HWC", (0, 3, 1, 2)),
        ((3, 44, 36), 1, "CHW", (0, 1, 2, 3)),
        ((2, 44, 36, 3), 2, "HWC", (0, 1, 4, 2, 3)),
        # Stacks that the environment makes, alone and within a stack of stacks.
        ((4, 44, 36, 3), 1, "HWC", (0, 1, 4, 2, 3)),
        ((4, 3, 44, 36), 1, "CHW", (0, 1, 2, 3, 4)),
        ((2, 4, 44, 36, 3), 2, "HWC", (0, 1, 2, 5, 3, 4)),
    ],
)
def test_nature_cnn_sees_the_same_image_in_every_layout(
    shape: tuple[int, ...], stack: int, layout: str, to_channels_first: tuple[int, ...]
) -> None:
    network = build_network(image_spec(shape, 2, stack, layout=layout), LearnerConfig())
    images = np.random.default_rng(0).integers(256, size=(5, *shape), dtype=np.uint8)
    plain = images.transpose(to_channels_first).reshape(5, -1, 44, 36).astype(np.float32) / 255
    first, *others = [parameter.detach() for parameter in network.parameters()]
    bias, w2, b2, w3, b3, w4, b4, w5, b5 = others
    conv2d, relu = torch.nn.functional.conv2d, torch.relu
    hidden = relu(conv2d(torch.from_numpy(plain), first, bias, stride=4))
    hidden = relu(conv2d(relu(conv2d(hidden, w2, b2, stride=2)), w3, b3))
    expected = relu(hidden.flatten(1) @ w4.T + b4) @ w5.T + b5
    torch.testing.assert_close(network(torch.from_numpy(images)).detach(), expected, rtol=1e-4, atol=1e-5)


def test_impala_cnn_has_the_sizes_of_the_paper() -> None:
    network = build_network(image_spec((4, 84, 84), 6, stack=4), LearnerConfig(network="impala_cnn"))
    sizes = [tuple(parameter.shape) for parameter in network.parameters()][0::2]
    sections = [
        size
        for before, channels in [(4, 16), (16, 32), (32, 32)]
        for size in [(channels, before, 3, 3), *[(channels, channels, 3, 3)] * 4]
    ]
    assert sizes == [*sections, (256, 32 * 11 * 11), (6, 256)]


def test_width_multiplies_channels_and_pooling_fixes_the_maps() -> None:
    """BTR (arXiv:2411.03820): channels of 32, 64, 64, maps of 6 x 6, 512 hidden units."""
    config = LearnerConfig(network="impala_cnn", impala_width=2, pool_size=6, image_hidden_size=512)
    network = build_network(image_spec((4, 84, 84), 6, stack=4), config)
    sizes = [tuple(parameter.shape) for parameter in network.parameters()][0::2]
    assert [sizes[0], sizes[5], sizes[10]] == [(32, 4, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]
    assert sizes[-2:] == [(512, 64 * 6 * 6), (6, 512)]


@pytest.mark.parametrize(("network", "side"), [("minatar_cnn", 10), ("nature_cnn", 68), ("impala_cnn", 60)])
def test_pooling_takes_the_maximum_of_windows_that_cover_the_map(network: str, side: int) -> None:
    spec = image_spec((side, side), 2, dtype="float32")
    plain = build_network(spec, LearnerConfig(network=network)).torso
    pooled = build_network(spec, LearnerConfig(network=network, pool_size=3)).torso
    pooled.load_state_dict(plain.state_dict())
    images = torch.randn(2, side, side)
    channels = {"minatar_cnn": 16, "nature_cnn": 64, "impala_cnn": 32}[network]
    maps = plain(images).view(2, channels, -1)
    width = int(maps.shape[2] ** 0.5)
    maps = maps.view(2, channels, width, width)
    assert (pooled.num_features, width) == (
        9 * channels,
        {"minatar_cnn": 8}.get(network, 8 if side == 60 else 5),
    )
    # Window i of 3 reaches from floor(i W / 3) to ceil((i + 1) W / 3).
    windows = [slice(i * width // 3, -(-(i + 1) * width // 3)) for i in range(3)]
    expected = torch.stack([maps[:, :, y, x].amax(dim=(2, 3)) for y in windows for x in windows], dim=2)
    torch.testing.assert_close(pooled(images), expected.flatten(1))


def test_a_residual_block_adds_to_what_enters_it() -> None:
    block = ResidualBlock(2, LearnerConfig())
    inputs = torch.randn(3, 2, 5, 5)
    first, second = (module for module in block.layers if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(block(inputs), inputs + second(torch.relu(first(torch.relu(inputs)))))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    torch.testing.assert_close(block(inputs), inputs)


def test_minatar_cnn_has_the_sizes_of_the_paper() -> None:
    """Young and Tian 2019, section 4: 16 filters of 3 x 3 at stride 1, then 128 units."""
    network = build_network(image_spec((10, 10, 4), 6, layout="HWC"), LearnerConfig(network="minatar_cnn"))
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert shapes == [(16, 4, 3, 3), (16,), (128, 16 * 8 * 8), (128,), (6, 128), (6,)]


def test_flags_enter_a_network_as_zeros_and_ones() -> None:
    spec = replace(image_spec((10, 10, 4), 3, layout="HWC", dtype="|b1"), pixels=())
    network = build_network(spec, LearnerConfig(network="minatar_cnn"))
    flags = torch.rand(5, 10, 10, 4) < 0.3
    channels_first = flags.permute(0, 3, 1, 2).float()
    convolution = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    hidden = torch.relu(convolution(channels_first)).flatten(1)
    expected = network.advantage(hidden)
    assert torch.allclose(network(flags), expected, atol=1e-6)


@pytest.mark.parametrize("network", ["nature_cnn", "impala_cnn", "mlp"])
def test_the_space_decides_whether_values_are_divided_by_255_and_the_dtype_does_not(network: Any) -> None:
    config = LearnerConfig(network=network, hidden_sizes=(8,))
    images = torch.randint(256, (2, 36, 36, 3), dtype=torch.uint8)
    pixels = image_spec((36, 36, 3), 2, layout="HWC")
    codes = replace(pixels, pixels=())
    of_pixels, of_codes = (seeded_network(spec, config) for spec in (pixels, codes))
    of_codes.load_state_dict(of_pixels.state_dict())
    kept = images.float()
    assert torch.equal(of_pixels(images), of_pixels(kept))
    assert torch.equal(kept, images.float())
    torch.testing.assert_close(of_pixels(images), of_codes(images / 255))
    torch.testing.assert_close(of_codes(images), of_codes(kept))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("network", ["nature_cnn", "impala_cnn"])
def test_packed_convolutions_serve_where_no_gradient_is_wanted(network: Any, layer_norm: bool) -> None:
    config = LearnerConfig(network=network, layer_norm=layer_norm)
    torso = build_network(image_spec((4, 84, 84), 6, stack=4), config).torso
    assert isinstance(torso, ImageTorso)
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 4, 84, 84), dtype=np.uint8))
    convolutions = [layer for layer in torso.modules() if isinstance(layer, nn.Conv2d)]

    with torch.no_grad():
        plain = torso(images)
        torso.pack()
        torch.testing.assert_close(torso(images), plain, rtol=1e-6, atol=1e-6)
        for layer in convolutions:
            layer.weight.mul_(0.5)
        torch.testing.assert_close(torso(images), plain, rtol=1e-6, atol=1e-6)
    changed = torso(images)  # the present weights, and a gradient of each
    assert not torch.allclose(changed, plain, rtol=0.1)
    changed.sum().backward()
    assert all(layer.weight.grad is not None for layer in convolutions)
    with torch.no_grad():
        torso.pack()
        torch.testing.assert_close(torso(images), changed.detach(), rtol=1e-6, atol=1e-6)


def test_features_are_joined_in_the_order_of_the_parts() -> None:
    torso = JoinedTorso({"a": DenseTorso((2,), False), "b": DenseTorso((1,), False)})
    joined = torso({"b": torch.tensor([[7.0]]), "a": torch.tensor([[1.0, 2.0]])})
    assert joined.tolist() == [[1.0, 2.0, 7.0]]
