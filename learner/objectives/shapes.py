"""The one check that stands between tensors and silent broadcasting.

Owns the shape check of the pure functions; must not import anything but torch.
"""

from __future__ import annotations

from torch import Tensor


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless tensor has exactly this shape ([B, 1] is not [B])."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")


def require_vector(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless tensor is [B]."""
    if tensor.dim() != 1:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected one axis, [B]")
