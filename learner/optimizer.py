"""One optimizer step on one vector: learning rate, clipping, Adam or SGD.

Owns the optimizer's state; must not import architectures of networks, numpy or the replay service.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.networks.flat import FlatNetwork
from learner.torch_private import adam_step, sgd_step


class LearningRate:
    """The learning rate of each update: constant, or falling linearly to learning_rate_end."""

    def __init__(self, config: LearnerConfig) -> None:
        self._first = config.first_rate
        self._change = config.learning_rate_end - self._first
        self._decay_updates = config.learning_rate_decay_updates

    def of(self, update: int) -> float:
        """The rate of update number `update`, from 0."""
        if self._decay_updates is None:
            return self._first
        return self._first + min(update / self._decay_updates, 1.0) * self._change


def clip_(gradient: Tensor, max_norm: float | None, *, may_read: bool) -> Tensor:
    """Scales gradient [P] in place to a 2-norm of at most max_norm; returns the norm before, a scalar.

    A gradient within the bound stays as it is. may_read: whether the host may read the norm, for which it
    would have to wait for a GPU.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient)
    # Most gradients need no scaling.
    if max_norm is not None and not (may_read and norm.item() <= max_norm):
        gradient.div_((norm / max_norm).clamp_(min=1.0))
    return norm


class FlatOptimizer:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980), AdamW or plain SGD on a network's flat weights.

    AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2) first multiplies the weights by
    1 - learning rate * weight_decay, so that the decay does not pass through Adam's moments. As in
    torch.optim.AdamW all weights decay, biases too; frozen ones do not.
    """

    def __init__(self, network: FlatNetwork, config: LearnerConfig, *, is_recorded: bool = False) -> None:
        """is_recorded: whether `step_unless` is recorded once and replayed with other rates."""
        self._config = config
        self._learning_rate = LearningRate(config)
        self._network = network
        self._moments: dict[str, Tensor] = {}
        self._steps = network.weights.new_zeros(())
        self._rate = 0.0
        self._recorded_rate = network.weights.new_zeros(()) if is_recorded else None
        self._decaying: list[Tensor] = []
        if config.optimizer == "adamw":
            self._decaying = network.unfrozen()
        if config.optimizer != "sgd":
            self._moments = {name: torch.zeros_like(network.weights) for name in ("exp_avg", "exp_avg_sq")}

    def step(self, update: int) -> None:
        """Applies the gradient as it is, as update number `update`, from 0."""
        self._apply(self._learning_rate.of(update), None)

    def set_rate(self, update: int) -> None:
        """Sets the rate of `step_unless` to that of update number `update`, from 0."""
        self._rate = self._learning_rate.of(update)
        if self._recorded_rate is not None:
            self._recorded_rate.fill_(self._rate)

    def step_unless(self, skip: Tensor) -> None:
        """Applies the gradient as it is, or changes nothing if `skip`, a scalar, is 1.

        Only the device reads it, so that the host need not wait.
        """
        self._apply(self._rate if self._recorded_rate is None else self._recorded_rate, skip)

    def _apply(self, rate: float | Tensor, skip: Tensor | None) -> None:
        if self._config.optimizer == "sgd":
            sgd_step(self._network.weights, self._network.gradient, learning_rate=rate, skip=skip)
            return
        kept = 1.0 - rate * self._config.weight_decay
        for weights in self._decaying:
            weights.mul_(kept if skip is None else torch.where(skip > 0.0, 1.0, kept))
        self._steps += 1
        adam_step(
            self._network.weights,
            self._network.gradient,
            **self._moments,
            steps=self._steps,
            learning_rate=rate,
            epsilon=self._config.adam_epsilon,
            skip=skip,
        )
        if skip is not None:
            self._steps -= skip

    def state(self) -> dict[str, Tensor]:
        """Adam's moments, name -> [P], not copied; empty for SGD."""
        return dict(self._moments)

    def restore(self, moments: Mapping[str, Tensor], updates: int) -> None:
        """Copies the tensors that `state()` returned after `updates` steps, and continues from there."""
        self._steps.fill_(updates)
        for name, moment in self._moments.items():
            moment.copy_(moments[name])
