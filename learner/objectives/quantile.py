"""QR-DQN and IQN: targets and loss for quantiles of the return, at fixed or drawn fractions.

Dabney et al. 2018, arXiv:1710.10044, and 2018b, arXiv:1806.06923. Owns pure functions of quantiles; must
not import networks, optimizers or numpy.
"""

import torch
from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig
from learner.fractions import midpoints
from learner.objectives.fit import Fit, Outputs, at_action, of_action
from learner.objectives.munchausen import munchausen, munchausen_target
from learner.objectives.q_learning import best_action
from learner.objectives.shapes import require_matrix, require_rewards, require_shape, require_vector


def quantile_target(r_t: Tensor, discount_t: Tensor, quantiles_t: Tensor) -> Tensor:
    """y_j = r_t + discount_t theta_j: samples of the target distribution, all equally likely.

    Args:
        r_t: [B], the n-step reward.
        discount_t: [B], gamma^n, 0 where the episode terminated.
        quantiles_t: [B, N], the target network's quantiles for the chosen action.

    Returns:
        [B, N].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    require_rewards(r_t, discount_t)
    require_matrix("quantiles_t", quantiles_t, len(r_t))
    return r_t.unsqueeze(1) + discount_t.unsqueeze(1) * quantiles_t


def quantile_huber_loss(
    quantiles_tm1: Tensor, target: Tensor, weight: Tensor, kappa: float, fractions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """L = mean over B of weight * sum_i mean_j |tau_i - 1(u_ij < 0)| h(u_ij) / kappa (equations 9 and 10).

    u_ij = target_j - quantiles_tm1_i; tau_i is the fraction that quantile i estimates; h is Huber's loss,
    u^2 / 2 up to |u| = kappa, then kappa (|u| - kappa / 2). Equation 3 of the paper on IQN is the same.
    dL / dquantiles_tm1_i = -weight mean_j |tau_i - 1(u_ij < 0)| clip(u_ij, -kappa, kappa) / (kappa B).

    Args:
        quantiles_tm1: [B, N], of the action taken.
        target: [B, M], from `quantile_target`: a constant.
        weight: [B], importance weights.
        kappa: above 0, in units of the return.
        fractions: [B, N], tau_i of each transition; None: the midpoints (i + 1/2) / N.

    Returns:
        L, a scalar, and dL / dquantiles_tm1 [B, N].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    require_vector("weight", weight)
    require_matrix("quantiles_tm1", quantiles_tm1, len(weight))
    require_matrix("target", target, len(weight))
    if fractions is None:
        fractions = midpoints(quantiles_tm1.shape[1], like=target).expand_as(quantiles_tm1)
    require_shape("fractions", fractions, tuple(quantiles_tm1.shape))
    error = target.unsqueeze(1) - quantiles_tm1.unsqueeze(2)  # u_ij, [B, N, M]
    # |tau_i - 1(u_ij < 0)| is tau_i where u_ij is above 0, and 1 - tau_i below: neither depends on j. So both
    # kinds of errors are averaged over j first, because each operation on [B, N, M] costs.
    # With c = clip(u, -kappa, kappa), h(u) is c (u - c / 2).
    above, below, complement = error.clamp(0.0, kappa), error.clamp(-kappa, 0.0), 1.0 - fractions
    mean_error = fractions * above.mean(dim=2) + complement * below.mean(dim=2)
    huber_above = (above * torch.sub(error, above, alpha=0.5)).mean(dim=2)
    huber_below = (below * torch.sub(error, below, alpha=0.5)).mean(dim=2)
    huber = fractions * huber_above + complement * huber_below
    loss = (weight * huber.sum(dim=1)).mean() / kappa
    return loss, weight.unsqueeze(1) * mean_error * (-1.0 / (kappa * len(weight)))


class QuantileHead:
    """N quantiles of the return for each action, outputs [B, A, N]; at midpoints, or at drawn fractions."""

    def __init__(self, config: LearnerConfig) -> None:
        self._kappa = config.huber_delta
        self._munchausen = munchausen(config)

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs [..., A, N] -> their means [..., A]."""
        return outputs.mean(dim=-1)

    def fit(self, batch: Batch, outputs: Outputs) -> Fit:
        """Compares distributions, see QHead."""
        values_t = self.values(outputs.t if outputs.choosing is None else outputs.choosing)
        quantiles_tm1 = of_action(outputs.tm1, batch.a_tm1)
        if self._munchausen is not None and outputs.policy_tm1 is not None:
            policy_q = self.values(outputs.policy_tm1)
            target = munchausen_target(batch, policy_q, values_t, outputs.t, self._munchausen)
        else:
            quantiles_t = of_action(outputs.t, best_action(values_t, batch.allowed_t))
            target = quantile_target(batch.r_t, batch.discount_t, quantiles_t)
        q_tm1, y = self.values(quantiles_tm1), self.values(target)
        loss, gradient = quantile_huber_loss(
            quantiles_tm1, target, batch.weight, self._kappa, outputs.fractions
        )
        return Fit(
            loss=loss,
            output_gradient=at_action(gradient, batch.a_tm1, outputs.tm1),
            q_tm1=q_tm1,
            target=y,
            td_error=(y - q_tm1).abs(),
        )
