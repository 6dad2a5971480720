"""Observations as the inputs of networks: flat features, or planes of images, in float32.

Owns these conversions, pure functions; must not import other parts of networks.
"""

import torch
from torch import Tensor

from learner.config import ImageShape


def features(observations: Tensor, *, pixels: bool) -> Tensor:
    """[B, *shape] of any dtype -> [B, D] float32, row-major; pixels are divided by 255."""
    flat = observations.reshape(observations.shape[0], -1)
    return unit_pixels(flat) if pixels else flat.float()


def images(observations: Tensor, image: ImageShape, layout: torch.memory_format) -> Tensor:
    """[B, H, W], [B, H, W, C] or [B, C, H, W], with stack axes after B where frames are stacked ->
    [B, channels, H, W] float32, in memory as `layout` says; pixels are divided by 255."""
    if image.channels_last:
        observations = observations.movedim(-1, -3)
    channels, height, width = image.channels, image.height, image.width
    planes = observations.reshape(observations.shape[0], channels, height, width)
    if not image.pixels:
        return planes.to(torch.float32, memory_format=layout)
    # Larger images: bytes are rearranged before they become four times as many. Planes stacked one by one are
    # the same as `contiguous`, in half its time.
    rearranged = (
        torch.stack(planes.unbind(1), dim=-1).movedim(-1, 1)
        if layout == torch.channels_last and not planes.is_contiguous(memory_format=layout)
        else planes.contiguous(memory_format=layout)
    )
    return unit_pixels(rearranged)


def unit_pixels(values: Tensor) -> Tensor:
    """Values from 0 to 255 of any dtype -> float32 from 0 to 1, a copy."""
    return values / 255.0 if values.dtype == torch.float32 else values.float().div_(255.0)
