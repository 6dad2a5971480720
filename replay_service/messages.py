"""What travels between a shard and its callers: typed requests in, typed replies out.

Owns no behaviour; must not import anything but numpy, `histogram` and `window_slots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from replay_service.histogram import Histogram
from replay_service.window_slots import SlotPlace


@dataclass(frozen=True)
class ProcessUsage:
    """What a process has used: CPU seconds since it began, and the memory that it holds now.

    resident_bytes includes what it shares with others.
    """

    cpu_seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class PrioritySummary:
    """Of all p^alpha held: the largest, and how evenly the mass is spread.

    effective_ratio is Kish's effective sample size, (sum p)^2 / sum p^2, over the number held: 1 where all
    are alike, 1/N where one has all the mass.
    """

    maximum: float
    effective_ratio: float


@dataclass(frozen=True)
class ShardMetrics:
    """What a shard counted of its work since this incarnation began; only a reply to `status` carries it.

    seconds by phase: "insert", "sample", "update" (of priorities). inserted_bytes as encoded, sampled_bytes
    with windows. sample_age: for rows drawn, how many transitions were inserted into the whole replay since
    they were (this shard's, times the number of shards); of one request in 32. process: filled in by whoever
    runs the shard in a process of its own.
    """

    capacity: int
    seconds: Mapping[str, float]
    inserted_bytes: int
    sampled_bytes: int
    repeated_pushes: int
    sample_age: Histogram
    priorities: PrioritySummary | None
    process: ProcessUsage | None = None


@dataclass(frozen=True)
class ShardStatus:
    """A shard's metrics at the moment of a reply; every reply carries them.

    mass is the sum of p^alpha over stored items (the count where sampling is uniform),
    min_priority the smallest p^alpha stored (inf when empty). Totals count since this incarnation began.
    earlier_*: what earlier incarnations took in by the journal's account, 0 without one. journal_error: why
    the journal does not follow (the disk is full); None while it does, or where there is none. metrics: None
    but in a reply to `status`.
    """

    shard: int
    incarnation: int
    count: int
    mass: float
    min_priority: float
    inserted_transitions_total: int
    env_steps_total: int
    evicted_transitions_total: int
    sampled_transitions_total: int
    late_priorities_total: int
    stored_bytes: int
    earlier_transitions_total: int = 0
    earlier_env_steps_total: int = 0
    journal_error: str | None = None
    metrics: ShardMetrics | None = field(default=None, compare=False)


@dataclass(frozen=True)
class InsertReply:
    """accepted is False for a repeated push (already held), which is not an error."""

    accepted: bool
    status: ShardStatus


@dataclass(frozen=True, eq=False)
class PriorityUpdate:
    """New absolute TD errors: keys [M] int64, td_errors [M] float32 (finite, >= 0)."""

    keys: np.ndarray
    td_errors: np.ndarray


@dataclass(frozen=True)
class SampleRequest:
    """counts[k] rows are wanted of this shard for the k-th minibatch; each is stratified by itself.

    slot: where the windows go, for a shard that can reach it.
    """

    counts: tuple[int, ...]
    slot: SlotPlace | None = None


@dataclass(frozen=True, eq=False)
class SampleReply:
    """M = sum(counts) rows, minibatch after minibatch.

    Attributes:
        windows: field name -> [M, W, *shape] (W = schema.window); empty where they are in the request's slot.
        action [M] int32, reward [M] float32, discount [M] float32, policy_version [M] int64.
        keys: [M] int64 item ids of this shard.
        probability: [M] float64, p_i / P_shard, the chance of each single draw within this shard.
    """

    status: ShardStatus
    counts: tuple[int, ...]
    windows: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    policy_version: np.ndarray
    keys: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True, eq=False)
class Minibatch:
    """One learner minibatch of B rows drawn over all shards.

    Arrays are views into a staging buffer that the sampler reuses: valid until the next
    minibatch is asked for.

    Attributes:
        windows: field name -> [B, W, *shape].
        action [B] int32, reward [B] float32, discount [B] float32, policy_version [B] int64.
        weight: [B] float32 importance weights (N * q_i)^-beta, divided by their maximum over the batch.
        index: position of this minibatch, to hand back with its TD errors.
        keys: [B] int64, shard after shard; transitions_per_shard: [S] int64, how many are of each. None where
            the source has no shards.
        asked_at_update: the `update` with which it was asked of the shards: its priorities are from then.
            None where the source does not prefetch.
        waited_seconds: for which the source waited for a reply before it could give this minibatch.
    """

    windows: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    policy_version: np.ndarray
    weight: np.ndarray
    index: int
    keys: np.ndarray | None = None
    transitions_per_shard: np.ndarray | None = None
    asked_at_update: int | None = None
    waited_seconds: float = 0.0
