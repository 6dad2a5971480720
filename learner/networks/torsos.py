"""Torsos: the part of a network that turns observations into features, by dense layers or convolutions.

Owns how observations enter a network; must not import the replay service or the learning loop.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.config import ConvolutionLayout, ImageShape, LearnerConfig, feature_map
from learner.networks.inputs import features, images
from learner.networks.products import Linear
from learner.networks.spectral import SpectralConv2d


class DenseTorso(nn.Module):
    """Fully connected layers, each with ReLU; sizes are [D, hidden…]. With one size there is no layer."""

    def __init__(self, sizes: Sequence[int], layer_norm: bool, *, pixels: bool = False) -> None:
        super().__init__()
        self._pixels = pixels
        self.num_features = sizes[-1]
        self.layers = nn.Sequential(
            *(layer for fan_in, fan_out in pairwise(sizes) for layer in dense(fan_in, fan_out, layer_norm))
        )

    def forward(self, observations: Tensor) -> Tensor:
        """[B, *shape] -> [B, num_features]."""
        hidden: Tensor = self.layers(features(observations, pixels=self._pixels))
        return hidden


class Convolution(nn.Conv2d):
    """torch's layer, which can keep its weights in the memory layout of images.

    torch otherwise rearranges them in each call. The kept ones serve where no gradient is wanted.
    """

    _packed: Tensor | None = None

    def pack(self, layout: torch.memory_format) -> None:
        """Keeps the present weights in this layout. Repeat it after each change of the weights."""
        self._packed = self.weight.detach().contiguous(memory_format=layout)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        weight = self.weight if self._packed is None or torch.is_grad_enabled() else self._packed
        return functional.conv2d(inputs, weight, self.bias, self.stride, self.padding)


class ImageTorso(nn.Module):
    """Layers over images: [B, channels, H, W] -> maps of `channels_out` channels, which are then flattened.

    pool_size p shrinks the maps to p x p first. Each pixel is then the maximum of a window; windows differ in
    size by one pixel where p does not divide the side.

    Attributes:
        layout: of the images in memory.
    """

    automatic_layout: ClassVar[torch.memory_format] = torch.channels_last
    """Large networks make about 1.2 times as many updates a second with channels last on a CPU (a Zen 5)."""

    def __init__(
        self,
        image: ImageShape,
        layers: Sequence[nn.Module],
        channels_out: int,
        sides: tuple[int, int],
        pool_size: int | None,
    ) -> None:
        super().__init__()
        self.image = image
        self.layout = self.automatic_layout
        pooling = [] if pool_size is None else [nn.AdaptiveMaxPool2d(pool_size)]
        self.convolutions = nn.Sequential(*layers, *pooling, nn.Flatten())
        self.num_features = channels_out * (math.prod(sides) if pool_size is None else pool_size**2)

    def lay_out(self, wanted: ConvolutionLayout) -> None:
        """Lays out images as learner.convolution_layout says."""
        layouts = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}
        self.layout = layouts.get(wanted, self.automatic_layout)

    def pack(self) -> None:
        """Packs the convolutions' weights, as `Convolution` says."""
        for layer in self.convolutions.modules():
            if isinstance(layer, Convolution):
                layer.pack(self.layout)

    def forward(self, observations: Tensor) -> Tensor:
        """[B, *shape] -> [B, num_features]."""
        hidden: Tensor = self.convolutions(images(observations, self.image, self.layout))
        return hidden


class NatureTorso(ImageTorso):
    """The convolutions of Mnih et al. 2015, doi:10.1038/nature14236, "Model architecture"."""

    def __init__(self, image: ImageShape, config: LearnerConfig) -> None:
        layers: list[nn.Module] = []
        for channels_in, channels_out, size, stride in (
            (image.channels, 32, 8, 4),
            (32, 64, 4, 2),
            (64, 64, 3, 1),
        ):
            convolution = Convolution(channels_in, channels_out, kernel_size=size, stride=stride)
            layers += [convolution, *image_norm(channels_out, config.layer_norm), nn.ReLU(inplace=True)]
        super().__init__(image, layers, 64, feature_map("nature_cnn", image), config.pool_size)


class MinatarTorso(ImageTorso):
    """The one convolution of Young and Tian 2019, arXiv:1903.03176, section 4: 16 channels, 3 x 3.

    It pads nothing, as there; images of fewer than 3 x 3 pixels do not fit.
    """

    # With so few channels, channels last take 1.2 to 1.5 times as long forward, and flattening them copies.
    automatic_layout = torch.contiguous_format

    def __init__(self, image: ImageShape, config: LearnerConfig) -> None:
        convolution = Convolution(image.channels, 16, kernel_size=3)
        layers = (convolution, *image_norm(16, config.layer_norm), nn.ReLU(inplace=True))
        super().__init__(image, layers, 16, feature_map("minatar_cnn", image), config.pool_size)


class ImpalaTorso(ImageTorso):
    """The residual network of Espeholt et al. 2018, arXiv:1802.01561, figure 3 (the large one, no LSTM).

    Three sections of 16, 32 and 32 channels, times config.impala_width: convolution, max-pooling by 2, two
    residual blocks.
    """

    def __init__(self, image: ImageShape, config: LearnerConfig) -> None:
        layers: list[nn.Module] = []
        widths = (config.impala_width * channels for channels in (16, 32, 32))
        for channels_in, channels_out in pairwise((image.channels, *widths)):
            layers += [
                Convolution(channels_in, channels_out, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                ResidualBlock(channels_out, config),
                ResidualBlock(channels_out, config),
            ]
        sides = feature_map("impala_cnn", image)
        super().__init__(image, [*layers, nn.ReLU(inplace=True)], channels_out, sides, config.pool_size)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), with equal channels and size throughout."""

    def __init__(self, channels: int, config: LearnerConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        kind = SpectralConv2d if config.spectral_norm else Convolution
        for _ in range(2):
            convolution = kind(channels, channels, kernel_size=3, padding=1)
            layers += [*image_norm(channels, config.layer_norm), nn.ReLU(), convolution]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        residual: Tensor = self.layers(inputs)
        return inputs + residual


Encoder = DenseTorso | ImageTorso
"""A torso for one array of an observation."""


class JoinedTorso(nn.Module):
    """An encoder for each part of an observation, their features joined in the parts' order."""

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        self._names = tuple(encoders)
        self.encoders = nn.ModuleList(encoders.values())
        self.num_features = sum(encoder.num_features for encoder in encoders.values())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Part name -> [B, *shape] -> [B, num_features]."""
        encoded = zip(self.encoders, self._names, strict=True)
        return torch.cat([encoder(observations[name]) for encoder, name in encoded], dim=1)


def dense(
    fan_in: int, fan_out: int, layer_norm: bool, linear: type[nn.Linear] = Linear
) -> Iterator[nn.Module]:
    """A linear layer, layer norm where wanted (Ba et al. 2016, arXiv:1607.06450), ReLU."""
    yield linear(fan_in, fan_out)
    if layer_norm:
        yield nn.LayerNorm(fan_out)
    yield nn.ReLU(inplace=True)


def image_norm(channels: int, layer_norm: bool) -> list[nn.Module]:
    """Layer norm over channels and pixels together, with gain and offset for each channel; [] if unwanted."""
    return [nn.GroupNorm(1, channels)] if layer_norm else []
