"""The report of a learning chunk and the source of its minibatches.

Owns interfaces only; must not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from replay_service.messages import Minibatch, ShardStatus


class DivergedError(RuntimeError):
    """Learning produced NaN or infinity: no weights of this chunk may be used."""


class MinibatchSource(Protocol):
    """Where minibatches come from (replay_service.sampler.ReplaySampler in a run; a list in tests)."""

    def next_minibatch(self, update: int) -> Minibatch:
        """The next minibatch; `update` anneals the importance exponent. May wait for data."""

    def give_back(self, index: int, td_errors: np.ndarray) -> None:
        """Absolute TD errors [B] of the minibatch with this index, to become its priorities."""

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest status of each shard heard of so far."""


@dataclass(frozen=True)
class LearnReport:
    """Counters of one chunk of updates; means are over the chunk's updates.

    version equals the total number of updates applied. seconds is time by phase:
    "wait" (for data), "update", "other".
    """

    version: int
    updates: int
    samples: int
    loss_mean: float
    q_mean: float
    target_mean: float
    td_error_mean: float
    grad_norm_mean: float
    policy_lag_mean: float
    learning_rate: float
    seconds: Mapping[str, float]
    statuses: tuple[ShardStatus, ...]


@dataclass(frozen=True, eq=False)
class LearnerState:
    """All that a learner needs to go on bit for bit after `version` updates.

    tensors: name -> [P] float32 copies: "online", "target", and for Adam "exp_avg" and "exp_avg_sq".
    """

    version: int
    tensors: Mapping[str, np.ndarray]
