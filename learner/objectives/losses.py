"""Losses of TD errors and their gradients: pure functions of [B] tensors.

Owns the losses of single values; must not import networks, optimizers or numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from learner.config import LearnerConfig
from learner.objectives.shapes import require_shape, require_vector

TdLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(td [B], weight [B]) -> loss L, a scalar, and dL / dq_tm1 [B], where the target is a constant."""


def squared_td_loss(td: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """L = mean over B of weight * td^2, without a factor 1/2; dL / dq_tm1 = -2 weight td / B.

    Args:
        td: [B], target - q_tm1.
        weight: [B], importance weights.

    Returns:
        L, a scalar, and dL / dq_tm1 [B], where the target is a constant.

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    _require_shapes(td, weight)
    return (weight * td * td).mean(), weight * td * (-2.0 / len(td))


def huber_td_loss(td: Tensor, weight: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """L = mean over B of weight * h(td); h is td^2 / 2 up to |td| = delta, then delta (|td| - delta / 2).

    dL / dq_tm1 = -weight clip(td, -delta, delta) / B. Huber 1964, doi:10.1214/aoms/1177703732. Arguments,
    result and errors as in squared_td_loss.
    """
    _require_shapes(td, weight)
    losses = functional.huber_loss(td, torch.zeros_like(td), reduction="none", delta=delta)
    return (weight * losses).mean(), weight * td.clamp(-delta, delta) * (-1.0 / len(td))


def td_loss(config: LearnerConfig) -> TdLoss:
    """The loss that the configuration names."""
    return squared_td_loss if config.loss == "squared" else partial(huber_td_loss, delta=config.huber_delta)


def _require_shapes(td: Tensor, weight: Tensor) -> None:
    require_vector("td", td)
    require_shape("weight", weight, tuple(td.shape))
