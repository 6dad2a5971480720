"""The interfaces of the learning loop: its source of minibatches, its reports and its saved state.

Owns interfaces and plain values; must not import torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from replay_service.histogram import Histogram
from replay_service.messages import Minibatch, ProcessUsage, ShardStatus


class DivergedError(RuntimeError):
    """Loss or gradient was NaN or infinite in learner.max_skipped_updates updates."""


class MinibatchSource(Protocol):
    """A source of minibatches: replay_service.sampler.ReplaySampler in a run, a list in tests."""

    def next_minibatch(self, update: int) -> Minibatch:
        """The next minibatch; `update` anneals the importance exponent. May wait for data.

        Raises EmptyShardError if replay holds no transitions, because a shard was lost.
        """

    def give_back(self, index: int, td_errors: np.ndarray) -> None:
        """Takes the absolute TD errors [B] of the minibatch with this index: its new priorities."""

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest known status of each shard."""


@dataclass(frozen=True, kw_only=True)
class UpdateMetrics:
    """Metrics of the updates of a chunk; NaN if there were none.

    Means are over updates, of each update's mean over its minibatch. grad_norm_mean is before clipping,
    grad_norm_clipped_mean after it. q_min and q_max are over the Q-values of the actions taken.

    target_gap is the mean |online - target| over the weights: just before the newest copy to the target
    network, or now where target_polyak moves the target network in each update.
    """

    loss_mean: float = math.nan
    loss_max: float = math.nan
    q_mean: float = math.nan
    q_min: float = math.nan
    q_max: float = math.nan
    target_mean: float = math.nan
    td_error_mean: float = math.nan
    grad_norm_mean: float = math.nan
    grad_norm_clipped_mean: float = math.nan
    target_gap: float = math.nan


class Note(NamedTuple):
    """Something that the run's user should read."""

    kind: Literal["info", "warning"]
    text: str


class Meeting(NamedTuple):
    """Where ranks find each other: an IP address of rank 0's machine, and a port on it."""

    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class LearnReport(UpdateMetrics):
    """The report of one chunk of updates.

    version is the total number of updates applied; samples includes those of skipped updates, which were not
    applied because their loss or gradient was not finite. learning_rate is that of the newest update.

    seconds: time by phase since the end of the previous chunk. "idle": between the chunks; "wait": for
    replies of shards; "draw": the rest of getting a minibatch (requesting, copying, weighting); "update";
    "other".

    policy_lag counts the versions between acting and learning for the transitions of one update in 16.
    priority_staleness counts the updates between requesting a minibatch and learning from it. notes are
    sentences for the run's user. The learner's owner fills in prefetched_requests and process.

    Several ranks of a learner report the same counts and loss, in which the other metrics of an update are
    those of the rank's own part of each minibatch; "exchange" is the time spent with other ranks.
    unequal_weights: 1 if they had different weights at the end of the chunk, and took over those of rank 0.
    """

    version: int
    updates: int
    samples: int
    learning_rate: float
    seconds: Mapping[str, float]
    statuses: tuple[ShardStatus, ...]
    skipped_updates: int = 0
    policy_lag: Histogram = field(default_factory=Histogram)
    priority_staleness_mean: float = math.nan
    priority_staleness_max: int = 0
    prefetched_requests: int | None = None
    process: ProcessUsage | None = None
    threads: int = 1
    rank: int = 0
    unequal_weights: int = 0
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, eq=False)
class LearnerState:
    """All that a learner needs to continue, bit for bit, after `version` updates.

    tensors: copies by name. "online" and "target" [P] float32; with Adam and AdamW "exp_avg" and "exp_avg_sq"
    [P] float32; with spectral norm "spectral_vectors" [S] float32, the singular vectors of all layers; of
    noisy networks and head iqn "noise", the state of the random generator, uint8; of normalized observations
    "observation_size" [1], "observation_mean" [D] and "observation_m2" [D], float64.
    """

    version: int
    tensors: Mapping[str, np.ndarray]


def minibatch_arrays(minibatch: Minibatch) -> dict[str, np.ndarray]:
    """The arrays of a minibatch that an update reads, by name: frame windows, and one value a transition."""
    return {
        **minibatch.windows,
        "action": minibatch.action,
        "reward": minibatch.reward,
        "discount": minibatch.discount,
        "weight": minibatch.weight,
    }
