"""One optimizer step on one vector: learning rate, clipping, Adam or SGD.

Owns the optimizer's state; must not import networks' architectures, numpy or the replay service.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.networks.flat import FlatNetwork


def learning_rate(config: LearnerConfig, update: int) -> float:
    """The rate of the update after `update` others: constant, or falling linearly to learning_rate_end."""
    if config.learning_rate_decay_updates is None:
        return config.learning_rate
    fallen = min(update / config.learning_rate_decay_updates, 1.0)
    return config.learning_rate + fallen * (config.learning_rate_end - config.learning_rate)


def clip_(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scales gradient [P] in place to a 2-norm of at most max_norm; returns the norm from before, a scalar.

    Reads nothing back from a GPU: nobody waits. A gradient within bounds keeps every bit.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient)
    # On a CPU the norm is there: nothing to wait for, and mostly nothing to scale.
    if max_norm is not None and not (gradient.device.type == "cpu" and norm.item() <= max_norm):
        gradient.div_((norm / max_norm).clamp_(min=1.0))
    return norm


class FlatOptimizer:
    """Fused Adam (Kingma and Ba 2015, arXiv:1412.6980) or plain SGD on a network's flat weights.

    Calls the operators below torch.optim: for one tensor its bookkeeping takes twice as long as they do, a
    tenth of a small network's update.
    """

    def __init__(self, network: FlatNetwork, config: LearnerConfig) -> None:
        self._config = config
        self._weights = network.weights
        self._gradient = network.gradient
        self._moments: dict[str, Tensor] = {}
        self._steps = torch.zeros((), device=self._weights.device)
        if config.optimizer == "adam":
            self._moments = {name: torch.zeros_like(self._weights) for name in ("exp_avg", "exp_avg_sq")}

    def clip(self) -> Tensor:
        """Clips the gradient; returns its norm from before, a scalar."""
        return clip_(self._gradient, self._config.max_grad_norm)

    def step(self, update: int, skip: Tensor | None = None) -> None:
        """Applies the gradient, as it is, to the weights; nothing changes where skip [] float32 is 1.

        `skip` is what gradient scaling uses: the operators look at it on the device.
        """
        rate = learning_rate(self._config, update)
        if self._config.optimizer == "sgd":
            torch._fused_sgd_(
                [self._weights],
                [self._gradient],
                [],
                lr=rate,
                momentum=0.0,
                dampening=0.0,
                weight_decay=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                found_inf=skip,
            )
            return
        self._steps += 1
        torch._fused_adam_(
            [self._weights],
            [self._gradient],
            [self._moments["exp_avg"]],
            [self._moments["exp_avg_sq"]],
            [],
            [self._steps],
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            eps=self._config.adam_epsilon,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        if skip is not None:
            self._steps -= skip

    def state(self) -> dict[str, Tensor]:
        """Adam's moments, name -> [P] (not copies); nothing for SGD."""
        return dict(self._moments)

    def restore(self, moments: Mapping[str, Tensor], updates: int) -> None:
        """Goes on from copies of `state()`'s tensors as they were after `updates` steps."""
        self._steps.fill_(updates)
        for name, moment in self._moments.items():
            moment.copy_(moments[name])
