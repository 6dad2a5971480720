"""Checks of shapes, so that nothing is broadcast silently.

Owns the shape checks of the pure functions; must not import anything but torch.
"""

from torch import Tensor


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless tensor has exactly this shape ([B, 1] is not [B])."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")


def require_vector(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless tensor is [B]."""
    if tensor.dim() != 1:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected one axis, [B]")


def require_matrix(name: str, tensor: Tensor, batch_size: int) -> None:
    """Raises ValueError unless tensor is [batch_size, N], with any N."""
    if tensor.dim() != 2 or len(tensor) != batch_size:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{batch_size}, N]")


def require_rewards(r_t: Tensor, discount_t: Tensor) -> None:
    """Raises ValueError unless r_t is [B] and so is discount_t."""
    require_vector("r_t", r_t)
    require_shape("discount_t", discount_t, tuple(r_t.shape))
