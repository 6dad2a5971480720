"""Settings of the learner (the `learner` section).

Owns names, defaults and single-value checks; must not import torch, so that a driver can read it cheaply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NetworkSpec:
    """What a network must fit: shapes of one observation and the number of actions A.

    observation_shape is [*frame] where stack is 1, else [stack, *frame]; num_states is set for
    Discrete observations, whose observation_shape is ().
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_states: int | None
    num_actions: int
    stack: int


@dataclass(frozen=True)
class LearnerConfig:
    """How Q is fitted.

    loss "squared" is mean (y - Q)^2; "huber" is quadratic below huber_delta. The target network is
    copied every target_update_updates, or follows by target_polyak (new share a update) where that is given.
    max_grad_norm None switches clipping off. threads None: set by role from the cores there are.
    learning_rate falls linearly to learning_rate_end over learning_rate_decay_updates where that is given.
    """

    network: Literal["auto", "mlp", "nature_cnn", "table"] = "auto"
    hidden_sizes: tuple[int, ...] = (128, 128)
    loss: Literal["squared", "huber"] = "squared"
    huber_delta: float = 1.0
    double: bool = False
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 5e-4
    learning_rate_end: float = 0.0
    learning_rate_decay_updates: int | None = None
    adam_epsilon: float = 1e-8
    max_grad_norm: float | None = 10.0
    batch_size: int = 64
    target_update_updates: int = 200
    target_polyak: float | None = None
    updates_per_chunk: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ValueError(
                f"learner.hidden_sizes is {list(self.hidden_sizes)}; give one or more sizes of at least 1"
            )
        for name in ("huber_delta", "learning_rate", "adam_epsilon"):
            value = getattr(self, name)
            if not value > 0.0:
                raise ValueError(f"learner.{name} is {value}; it must be above 0")
        if not 0.0 <= self.learning_rate_end <= self.learning_rate:
            raise ValueError(
                f"learner.learning_rate_end is {self.learning_rate_end}; "
                f"it lies in [0, learner.learning_rate = {self.learning_rate}]"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0.0:
            raise ValueError(
                f"learner.max_grad_norm is {self.max_grad_norm}; above 0, or null for no clipping"
            )
        if self.target_polyak is not None and not 0.0 < self.target_polyak <= 1.0:
            raise ValueError(f"learner.target_polyak is {self.target_polyak}; it lies in (0, 1], or null")
        for name in (
            "batch_size",
            "target_update_updates",
            "updates_per_chunk",
            "learning_rate_decay_updates",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"learner.{name} is {value}; give at least 1")
