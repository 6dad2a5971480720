"""One optimizer step on one vector: learning rate, clipping, Adam or SGD.

Owns the optimizer's state; must not import architectures of networks, numpy or the replay service.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.networks.flat import FlatNetwork
from learner.torch_private import adam_step, sgd_step


def learning_rate(config: LearnerConfig, update: int) -> float:
    """The rate of update number `update`, from 0: constant, or falling linearly to learning_rate_end."""
    if config.learning_rate_decay_updates is None:
        return config.first_rate
    fallen = min(update / config.learning_rate_decay_updates, 1.0)
    return config.first_rate + fallen * (config.learning_rate_end - config.first_rate)


def clip_(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scales gradient [P] in place to a 2-norm of at most max_norm; returns the norm before, a scalar.

    Reads nothing back from a GPU, so the host need not wait. A gradient within the bound stays as it is.
    """
    norm: Tensor = torch.linalg.vector_norm(gradient)
    # On a CPU the norm can be read at once, and most gradients need no scaling.
    if max_norm is not None and not (gradient.device.type == "cpu" and norm.item() <= max_norm):
        gradient.div_((norm / max_norm).clamp_(min=1.0))
    return norm


class FlatOptimizer:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980), AdamW or plain SGD on a network's flat weights.

    AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2) first multiplies the weights by
    1 - learning rate * weight_decay, so that the decay does not pass through Adam's moments. As in
    torch.optim.AdamW all weights decay, biases too; frozen ones do not.
    """

    def __init__(self, network: FlatNetwork, config: LearnerConfig) -> None:
        self._config = config
        self._network = network
        self._moments: dict[str, Tensor] = {}
        self._steps = torch.zeros((), device=network.weights.device)
        self._decaying: list[Tensor] = []
        if config.optimizer == "adamw":
            self._decaying = network.unfrozen()
        if config.optimizer != "sgd":
            self._moments = {name: torch.zeros_like(network.weights) for name in ("exp_avg", "exp_avg_sq")}

    def step(self, update: int, skip: Tensor | None = None) -> None:
        """Applies the gradient as it is, as update number `update`, from 0; changes nothing if skip is 1.

        skip: a scalar that only the device reads, so that the host need not wait for it.
        """
        rate = learning_rate(self._config, update)
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
