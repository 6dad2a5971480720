"""Losses of TD errors and their gradients: pure functions of [B] tensors.

Owns what is minimised; must not import networks, optimizers or numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from learner.config import LearnerConfig
from learner.objectives.shapes import require_shape, require_vector


def squared_td_loss(td: Tensor, weight: Tensor) -> Tensor:
    """L = mean over B of weight * td^2, without a factor 1/2.

    Args:
        td: [B], target - q_tm1.
        weight: [B], importance weights.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    _require_batch(td, weight)
    return (weight * td * td).mean()


def squared_td_gradient(td: Tensor, weight: Tensor) -> Tensor:
    """dL / dq_tm1 of squared_td_loss, [B]: the target counts as a constant, so this is -2 weight td / B."""
    _require_batch(td, weight)
    return weight * td * (-2.0 / len(td))


def huber_td_loss(td: Tensor, weight: Tensor, delta: float) -> Tensor:
    """L = mean over B of weight * h(td); h is td^2 / 2 up to |td| = delta, then delta (|td| - delta / 2).

    Huber 1964, doi:10.1214/aoms/1177703732. Arguments, result and errors as in squared_td_loss.
    """
    _require_batch(td, weight)
    losses = functional.huber_loss(td, torch.zeros_like(td), reduction="none", delta=delta)
    return (weight * losses).mean()


def huber_td_gradient(td: Tensor, weight: Tensor, delta: float) -> Tensor:
    """dL / dq_tm1 of huber_td_loss, [B]: -weight clip(td, -delta, delta) / B."""
    _require_batch(td, weight)
    return weight * td.clamp(-delta, delta) * (-1.0 / len(td))


@dataclass(frozen=True)
class TdLoss:
    """A loss of (td [B], weight [B]): its scalar value, and its gradient [B] with respect to q_tm1."""

    value: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


def td_loss(config: LearnerConfig) -> TdLoss:
    """The loss that the configuration names."""
    if config.loss == "squared":
        return TdLoss(squared_td_loss, squared_td_gradient)
    return TdLoss(
        partial(huber_td_loss, delta=config.huber_delta), partial(huber_td_gradient, delta=config.huber_delta)
    )


def _require_batch(td: Tensor, weight: Tensor) -> None:
    require_vector("td", td)
    require_shape("weight", weight, tuple(td.shape))
