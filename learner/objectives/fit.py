"""What a head compares, the outputs for a batch, and what it finds.

Owns these two values, and picking outputs by action; must not import networks, optimizers or numpy.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """What the networks compute for a batch: [B, A] each, or [B, A, N] where actions have distributions.

    Attributes:
        tm1: the online network's for obs_tm1, which are fitted.
        t: the target network's for obs_t.
        choosing: outputs for obs_t that choose the next action: the online network's with double Q-learning,
            those at fixed fractions for implicit quantiles; None: t itself chooses.
        fractions: [B, N], those of tm1, if it has implicit quantiles.
        policy_tm1: the target network's for obs_tm1, with Munchausen targets.
    """

    tm1: Tensor
    t: Tensor
    choosing: Tensor | None = None
    fractions: Tensor | None = None
    policy_tm1: Tensor | None = None


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


def of_action(outputs: Tensor, action: Tensor) -> Tensor:
    """outputs [B, A, N] at the actions [B] int64, [B, N]."""
    index = action.view(-1, 1, 1).expand(-1, 1, outputs.shape[2])
    return outputs.gather(1, index).squeeze(1)


def at_action(gradient: Tensor, action: Tensor, outputs: Tensor) -> Tensor:
    """Zeros in the shape of outputs [B, A, N], with gradient [B, N] at the actions [B] int64."""
    index = action.view(-1, 1, 1).expand(-1, 1, outputs.shape[2])
    return torch.zeros_like(outputs).scatter_(1, index, gradient.unsqueeze(1))
