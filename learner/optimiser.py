"""One optimiser step on one vector: learning rate, clipping, Adam or SGD.

Owns the optimiser's state; must not import networks' architectures, numpy or the replay service.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig
from learner.flat import FlatNetwork


def learning_rate(config: LearnerConfig, update: int) -> float:
    """The rate of the update after `update` others: constant, or falling linearly to learning_rate_end."""
    if config.learning_rate_decay_updates is None:
        return config.learning_rate
    fallen = min(update / config.learning_rate_decay_updates, 1.0)
    return config.learning_rate + fallen * (config.learning_rate_end - config.learning_rate)


def clip_(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scales gradient [P] in place to a 2-norm of at most max_norm; returns the norm from before, a scalar.

    Reads nothing back to Python: on a GPU nobody waits. A gradient within bounds keeps every bit.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if max_norm is not None:
        gradient.div_((norm / max_norm).clamp_(min=1.0))
    return norm


class FlatOptimiser:
    """Fused Adam (Kingma and Ba 2015, arXiv:1412.6980) or plain SGD on a network's flat weights."""

    def __init__(self, network: FlatNetwork, config: LearnerConfig) -> None:
        self._config = config
        self._gradient = network.gradient
        self._parameter = nn.Parameter(network.weights)
        self._parameter.grad = network.gradient
        self._optimiser: torch.optim.Optimizer
        if config.optimiser == "adam":
            self._optimiser = torch.optim.Adam([self._parameter], eps=config.adam_epsilon, fused=True)
            zeros = torch.zeros_like(network.weights)
            self.restore({"exp_avg": zeros, "exp_avg_sq": zeros}, updates=0)
        else:
            self._optimiser = torch.optim.SGD([self._parameter], fused=True)

    def clip(self) -> Tensor:
        """Clips the gradient; returns its norm from before, a scalar."""
        return clip_(self._gradient, self._config.max_grad_norm)

    def step(self, update: int, skip: Tensor | None = None) -> None:
        """Applies the gradient, as it is, to the weights; nothing changes where skip [] float32 is 1."""
        self._optimiser.param_groups[0]["lr"] = learning_rate(self._config, update)
        # What gradient scaling uses: fused optimisers look at it on the device.
        self._optimiser.found_inf = skip  # type: ignore[attr-defined]
        self._optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """Adam's moments, name -> [P] (not copies); nothing for SGD."""
        if self._config.optimiser == "sgd":
            return {}
        moments = self._optimiser.state[self._parameter]
        return {name: moments[name] for name in ("exp_avg", "exp_avg_sq")}

    def restore(self, moments: Mapping[str, Tensor], updates: int) -> None:
        """Goes on from copies of `state()`'s tensors as they were after `updates` steps."""
        if self._config.optimiser == "adam":
            self._optimiser.state[self._parameter] = {
                "step": torch.tensor(float(updates), device=self._parameter.device),
                **{name: moments[name].clone() for name in ("exp_avg", "exp_avg_sq")},
            }
