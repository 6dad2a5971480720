"""The report of a learning chunk and the source of its minibatches.

Owns interfaces only; must not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from replay_service.histogram import Histogram
from replay_service.messages import Minibatch, ProcessUsage, ShardStatus


class DivergedError(RuntimeError):
    """Learning produced NaN or infinity as often as learner.max_skipped_updates allows."""


class MinibatchSource(Protocol):
    """Where minibatches come from (replay_service.sampler.ReplaySampler in a run; a list in tests)."""

    def next_minibatch(self, update: int) -> Minibatch:
        """The next minibatch; `update` anneals the importance exponent. May wait for data.

        Raises EmptyShardError where replay holds no rows: a shard was lost.
        """

    def give_back(self, index: int, td_errors: np.ndarray) -> None:
        """Absolute TD errors [B] of the minibatch with this index, to become its priorities."""

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest status of each shard heard of so far."""


@dataclass(frozen=True)
class LearnReport:
    """Counters of one chunk of updates; means are over the chunk's updates, NaN if there were none.

    version equals the total number of updates applied; samples counts those of skipped updates too.
    seconds is time by phase: "wait" (for replies of shards), "draw" (what else it takes to have a minibatch:
    asking, copying, weighing), "update", "other", and "idle" since the chunk before.

    grad_norm_mean is from before clipping, grad_norm_clipped_mean from after. target_gap is the mean
    |online - target| over the weights, just before the target network's newest copy; where it follows each
    update, at the chunk's end. skipped_updates were not applied, because loss or gradient was not finite.

    q_min and q_max are over the Q-values of the actions taken; policy_lag counts the versions between
    a transition's acting and its learning, in the first update of every 16 of a chunk. priority_staleness
    is how many updates were done between asking for a minibatch and learning from it. prefetched_requests
    and process are filled in by whoever runs the learner.
    """

    version: int
    updates: int
    samples: int
    loss_mean: float
    q_mean: float
    target_mean: float
    td_error_mean: float
    grad_norm_mean: float
    learning_rate: float
    seconds: Mapping[str, float]
    statuses: tuple[ShardStatus, ...]
    grad_norm_clipped_mean: float = 0.0
    target_gap: float = 0.0
    skipped_updates: int = 0
    loss_max: float = math.nan
    q_min: float = math.nan
    q_max: float = math.nan
    policy_lag: Histogram = field(default_factory=Histogram)
    priority_staleness_mean: float = math.nan
    priority_staleness_max: int = 0
    prefetched_requests: int | None = None
    process: ProcessUsage | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LearnerState:
    """All that a learner needs to go on bit for bit after `version` updates.

    tensors: name -> [P] float32 copies: "online", "target", and for Adam "exp_avg" and "exp_avg_sq"; for
    noisy networks also "noise", the random generator's state as uint8.
    """

    version: int
    tensors: Mapping[str, np.ndarray]
