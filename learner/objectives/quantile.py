"""QR-DQN: quantiles of the return, and their fit (Dabney et al. 2018, arXiv:1710.10044).

Owns pure functions of quantiles; must not import networks, optimizers or numpy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from learner.objectives.shapes import require_shape, require_vector


def quantile_target(r_t: Tensor, discount_t: Tensor, quantiles_t: Tensor) -> Tensor:
    """y_j = r_t + discount_t theta_j: samples of the target distribution, all of one chance.

    Args:
        r_t: [B], the n-step reward.
        discount_t: [B], gamma^n, 0 where the episode terminated.
        quantiles_t: [B, N], the target network's quantiles for the chosen action.

    Returns:
        [B, N].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    require_vector("r_t", r_t)
    require_shape("discount_t", discount_t, tuple(r_t.shape))
    _require_quantiles("quantiles_t", quantiles_t, len(r_t))
    return r_t.unsqueeze(1) + discount_t.unsqueeze(1) * quantiles_t


def quantile_huber_loss(quantiles_tm1: Tensor, target: Tensor, weight: Tensor, kappa: float) -> Tensor:
    """L = mean over B of weight * sum_i mean_j |tau_i - 1(u_ij < 0)| h(u_ij) / kappa (equations 9 and 10).

    u_ij = target_j - quantiles_tm1_i; tau_i = (i + 1/2) / N counted from 0, the midpoint that quantile i
    estimates; h is Huber's loss, u^2 / 2 up to |u| = kappa, then kappa (|u| - kappa / 2).

    Args:
        quantiles_tm1: [B, N], of the action taken.
        target: [B, M], as `quantile_target` gives it.
        weight: [B], importance weights.
        kappa: above 0, in units of the return.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    error, pull = _errors(quantiles_tm1, target, weight)
    huber = functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=kappa) / kappa
    return (weight * (pull * huber).mean(dim=2).sum(dim=1)).mean()


def quantile_huber_gradient(quantiles_tm1: Tensor, target: Tensor, weight: Tensor, kappa: float) -> Tensor:
    """dL / dquantiles_tm1 of quantile_huber_loss, [B, N]; the target counts as a constant:

    -weight mean_j |tau_i - 1(u_ij < 0)| clip(u_ij, -kappa, kappa) / (kappa B).
    """
    error, pull = _errors(quantiles_tm1, target, weight)
    mean_pull = (pull * error.clamp(-kappa, kappa)).mean(dim=2)
    return weight.unsqueeze(1) * mean_pull * (-1.0 / (kappa * len(weight)))


def _errors(quantiles_tm1: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """u_ij and |tau_i - 1(u_ij < 0)|, both [B, N, M]."""
    require_vector("weight", weight)
    _require_quantiles("quantiles_tm1", quantiles_tm1, len(weight))
    _require_quantiles("target", target, len(weight))
    num_quantiles = quantiles_tm1.shape[1]
    tau = (torch.arange(num_quantiles, device=target.device, dtype=target.dtype) + 0.5) / num_quantiles
    error = target.unsqueeze(1) - quantiles_tm1.unsqueeze(2)
    return error, (tau[:, None] - (error < 0.0).to(error.dtype)).abs_()


def _require_quantiles(name: str, quantiles: Tensor, batch_size: int) -> None:
    if quantiles.dim() != 2 or len(quantiles) != batch_size:
        raise ValueError(f"{name} has shape {list(quantiles.shape)}, expected [{batch_size}, N]")
