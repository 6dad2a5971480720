"""The head that learns one mean return for each action.

Owns the fit of Q-values to their targets; must not import networks, optimizers or numpy.
"""

import torch
from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig
from learner.objectives.fit import Fit, Outputs
from learner.objectives.munchausen import munchausen, munchausen_target
from learner.objectives.q_learning import double_q_target, q_learning_target, td_loss


class QHead:
    """One mean return for each action, outputs [B, A]."""

    def __init__(self, config: LearnerConfig) -> None:
        self._loss = td_loss(config)
        self._munchausen = munchausen(config)

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs [..., A] -> Q-values [..., A], the largest of which acting takes."""
        return outputs

    def fit(self, batch: Batch, outputs: Outputs) -> Fit:
        """Compares outputs.tm1 with targets made of outputs.t at the actions that outputs.choosing names."""
        q_t, choosing = outputs.t, outputs.choosing
        if self._munchausen is not None and outputs.policy_tm1 is not None:
            single = munchausen_target(batch, outputs.policy_tm1, q_t, q_t.unsqueeze(2), self._munchausen)
            target = single.squeeze(1)
        elif choosing is None:
            target = q_learning_target(batch.r_t, batch.discount_t, q_t, batch.allowed_t)
        else:
            target = double_q_target(batch.r_t, batch.discount_t, choosing, q_t, batch.allowed_t)
        taken = batch.a_tm1.unsqueeze(1)
        q_tm1 = outputs.tm1.gather(1, taken).squeeze(1)
        td = target - q_tm1
        loss, gradient = self._loss(td, batch.weight)
        return Fit(
            loss=loss,
            output_gradient=torch.zeros_like(outputs.tm1).scatter_(1, taken, gradient.unsqueeze(1)),
            q_tm1=q_tm1,
            target=target,
            td_error=td.abs(),
        )
