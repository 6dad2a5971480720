"""Heads: the meaning of a network's outputs (Q-values, a categorical distribution, quantiles) and their fit.

Owns the choice among the pure targets and losses; must not import networks, optimizers or numpy.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig
from learner.objectives.categorical import (
    categorical_mean,
    categorical_target,
    cross_entropy_loss,
    support,
)
from learner.objectives.q_learning import double_q_target, masked, q_learning_target, td_loss
from learner.objectives.quantile import quantile_huber_loss, quantile_target


class Fit(NamedTuple):
    """How far a batch's outputs are from their targets.

    Attributes:
        loss: scalar.
        output_gradient: dL / doutputs, in the shape of the outputs; 0 for actions not taken.
        q_tm1, target: [B], the value of the action taken, and its target.
        td_error: [B], |target - q_tm1|, the priority. Distributions are compared by their means, because
            actors give new transitions priorities in that unit.
    """

    loss: Tensor
    output_gradient: Tensor
    q_tm1: Tensor
    target: Tensor
    td_error: Tensor


class QHead:
    """One mean return for each action, outputs [B, A]."""

    def __init__(self, config: LearnerConfig) -> None:
        self._loss = td_loss(config)

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs [..., A] -> Q-values [..., A], the largest of which acting takes."""
        return outputs

    def fit(self, batch: Batch, outputs_tm1: Tensor, outputs_t: Tensor, choosing: Tensor | None) -> Fit:
        """Compares outputs_tm1 (online network) with targets made of outputs_t (target network).

        choosing: the online network's outputs for obs_t, which choose the next action (double Q-learning);
        None where the target network chooses its own best.
        """
        if choosing is None:
            target = q_learning_target(batch.r_t, batch.discount_t, outputs_t, batch.allowed_t)
        else:
            target = double_q_target(batch.r_t, batch.discount_t, choosing, outputs_t, batch.allowed_t)
        taken = batch.a_tm1.unsqueeze(1)
        q_tm1 = outputs_tm1.gather(1, taken).squeeze(1)
        td = target - q_tm1
        loss, gradient = self._loss(td, batch.weight)
        return Fit(
            loss=loss,
            output_gradient=torch.zeros_like(outputs_tm1).scatter_(1, taken, gradient.unsqueeze(1)),
            q_tm1=q_tm1,
            target=target,
            td_error=td.abs(),
        )


class CategoricalHead:
    """Logits of N fixed returns for each action, outputs [B, A, N] (`learner.objectives.categorical`)."""

    def __init__(self, config: LearnerConfig, device: torch.device) -> None:
        self._atoms = support(config.value_range, config.num_atoms).to(device)

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs [..., A, N] -> their means [..., A]."""
        return categorical_mean(outputs, self._atoms)

    def fit(self, batch: Batch, outputs_tm1: Tensor, outputs_t: Tensor, choosing: Tensor | None) -> Fit:
        """Compares distributions; arguments as in QHead."""
        logits_tm1 = of_action(outputs_tm1, batch.a_tm1)
        probability_t = of_action(outputs_t, _best_action(self, batch, outputs_t, choosing)).softmax(dim=1)
        target = categorical_target(batch.r_t, batch.discount_t, probability_t, self._atoms)
        q_tm1, y = self.values(logits_tm1), target @ self._atoms
        loss, gradient = cross_entropy_loss(logits_tm1, target, batch.weight)
        return Fit(
            loss=loss,
            output_gradient=at_action(gradient, batch.a_tm1, outputs_tm1),
            q_tm1=q_tm1,
            target=y,
            td_error=(y - q_tm1).abs(),
        )


class QuantileHead:
    """N quantiles of the return for each action, outputs [B, A, N] (`learner.objectives.quantile`)."""

    def __init__(self, config: LearnerConfig) -> None:
        self._kappa = config.huber_delta

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs [..., A, N] -> their means [..., A]."""
        return outputs.mean(dim=-1)

    def fit(self, batch: Batch, outputs_tm1: Tensor, outputs_t: Tensor, choosing: Tensor | None) -> Fit:
        """Compares distributions; arguments as in QHead."""
        quantiles_tm1 = of_action(outputs_tm1, batch.a_tm1)
        quantiles_t = of_action(outputs_t, _best_action(self, batch, outputs_t, choosing))
        target = quantile_target(batch.r_t, batch.discount_t, quantiles_t)
        q_tm1, y = self.values(quantiles_tm1), self.values(target)
        loss, gradient = quantile_huber_loss(quantiles_tm1, target, batch.weight, self._kappa)
        return Fit(
            loss=loss,
            output_gradient=at_action(gradient, batch.a_tm1, outputs_tm1),
            q_tm1=q_tm1,
            target=y,
            td_error=(y - q_tm1).abs(),
        )


Head = QHead | CategoricalHead | QuantileHead
"""The meaning of outputs [B, A] or [B, A, N]."""


def make_head(config: LearnerConfig, device: torch.device) -> Head:
    """The head that the configuration names."""
    match config.head:
        case "q":
            return QHead(config)
        case "c51":
            return CategoricalHead(config, device)
        case "qr":
            return QuantileHead(config)


def of_action(outputs: Tensor, action: Tensor) -> Tensor:
    """outputs [B, A, N] at the actions [B] int64, [B, N]."""
    index = action.view(-1, 1, 1).expand(-1, 1, outputs.shape[2])
    return outputs.gather(1, index).squeeze(1)


def at_action(gradient: Tensor, action: Tensor, outputs: Tensor) -> Tensor:
    """Zeros in the shape of outputs [B, A, N], with gradient [B, N] at the actions [B] int64."""
    index = action.view(-1, 1, 1).expand(-1, 1, outputs.shape[2])
    return torch.zeros_like(outputs).scatter_(1, index, gradient.unsqueeze(1))


def _best_action(head: Head, batch: Batch, outputs_t: Tensor, choosing: Tensor | None) -> Tensor:
    """The allowed next action of the highest Q-value, [B] int64, by `choosing` where it is given."""
    values_t = head.values(outputs_t if choosing is None else choosing)
    return masked(values_t, batch.allowed_t).argmax(dim=1)
