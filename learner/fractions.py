"""Fractions of probability at which quantiles are taken: midpoints of equal parts, or drawn at random.

Owns them for networks and objectives alike; must not import either.
"""

import torch
from torch import Tensor


def midpoints(count: int, like: Tensor) -> Tensor:
    """(i + 1/2) / count for i = 0 … count - 1, [count] with the device and dtype of `like`."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def drawn(batch_size: int, count: int, generator: torch.Generator) -> Tensor:
    """[batch_size, count] float32, uniform in [0, 1), from a generator on the CPU."""
    return torch.rand(batch_size, count, generator=generator, dtype=torch.float32, device="cpu")
