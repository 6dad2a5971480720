"""The typed requests and replies between a shard and its callers.

Owns no behavior; must not import anything but numpy, `histogram` and `window_slots`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from replay_service.histogram import Histogram
from replay_service.window_slots import SlotPlace


@dataclass(frozen=True)
class ProcessUsage:
    """CPU seconds of a process since it began, and the memory that it holds now, shared memory included."""

    cpu_seconds: float
    resident_bytes: int


@dataclass(frozen=True)
class PrioritySummary:
    """The largest p^alpha that a shard holds, and how evenly the mass is spread over its N transitions.

    effective_ratio: Kish's effective sample size (sum p)^2 / sum p^2, divided by N. It is 1 if all priorities
    are equal and 1/N if one transition has all the mass.
    """

    maximum: float
    effective_ratio: float


@dataclass(frozen=True)
class ShardMetrics:
    """Metrics of a shard since this incarnation began; only a reply to `status` carries them.

    Attributes:
        capacity: number of transitions that this shard can hold.
        seconds: time spent in each phase: "insert", "sample", "update" (of priorities).
        inserted_bytes: bytes of the encoded blocks inserted.
        sampled_bytes: bytes of the sampled transitions, with their windows.
        repeated_pushes: pushes that the shard held already.
        refused_pushes: pushes of actors that had been replaced.
        refused_priorities: priorities for keys of earlier incarnations, which nobody should send any more.
        sample_age: number of transitions inserted into all shards since a drawn transition was (estimated:
            inserts of this shard times the number of shards). Measured for one request in 32.
        evicted_draws: how often each evicted transition had been drawn; evicted_draws_square_sum: the sum of
            the squares.
        priorities: at most 5 seconds old; None while the shard is empty.
        process: added by the role that runs the shard in a process of its own.
    """

    capacity: int
    seconds: Mapping[str, float]
    inserted_bytes: int
    sampled_bytes: int
    repeated_pushes: int
    refused_pushes: int
    refused_priorities: int
    sample_age: Histogram
    evicted_draws: Histogram
    evicted_draws_square_sum: float
    priorities: PrioritySummary | None
    process: ProcessUsage | None = None


@dataclass(frozen=True)
class ShardStatus:
    """A shard's state at the moment of a reply; every reply carries it.

    Attributes:
        count: transitions held.
        mass: sum of p^alpha over all transitions held; their count where sampling is uniform.
        min_priority: smallest p^alpha held, inf for an empty shard.
        *_total: counts since this incarnation began.
        stored_bytes: bytes held by transitions, frames and priorities.
        earlier_*: counts of earlier incarnations according to the journal, 0 without a journal.
        journal_error: why the journal is incomplete (the disk is full); None if it is complete or off.
        metrics: None except in a reply to `status`.
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
    """Acknowledges a push. accepted: False if the shard holds the block already, which is no error, or if its
    actor has been replaced, which is counted as refused.
    """

    accepted: bool
    status: ShardStatus


@dataclass(frozen=True, eq=False)
class PriorityUpdate:
    """New absolute TD errors: keys [M] int64, td_errors [M] float32 (finite, >= 0)."""

    keys: np.ndarray
    td_errors: np.ndarray


@dataclass(frozen=True)
class SampleRequest:
    """Asks a shard for counts[k] transitions of the k-th minibatch, each minibatch stratified by itself.

    slot: shared memory for the windows; a shard that cannot reach it puts them in its reply.
    """

    counts: tuple[int, ...]
    slot: SlotPlace | None = None


@dataclass(frozen=True, eq=False)
class Transitions:
    """M sampled transitions.

    Attributes:
        windows: field name -> [M, W, *shape] (W = schema.window).
        action [M] int32, reward [M] float32, discount [M] float32, policy_version [M] int64.
    """

    windows: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    policy_version: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleReply(Transitions):
    """M = sum(counts) transitions, minibatch after minibatch.

    windows is empty where the request's slot holds the windows.

    Attributes:
        keys: [M] int64 item ids within this shard.
        probability: [M] float64, p_i / P_shard, the probability of each draw within this shard.
    """

    status: ShardStatus
    counts: tuple[int, ...]
    keys: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Minibatch(Transitions):
    """One minibatch of B transitions, drawn over all shards.

    Arrays are views into staging buffers that the sampler reuses; they are valid until the next minibatch is
    requested.

    Attributes:
        weight: [B] float32 importance weights (N * q_i)^-beta, divided by their maximum over the batch.
        index: number of this minibatch, by which its TD errors are given back.
        keys: [B] int64, shard after shard; None if the source has no shards.
        transitions_per_shard: [S] int64, number of transitions from each shard; None if the source has no
            shards.
        requested_at_update: number of updates done when it was requested and its priorities were current.
            None if the source does not prefetch.
        waited_seconds: time that the source waited for the replies with this minibatch.
        largest_weight: the largest q_i^-beta, by which the weights are divided; 1 where all weights are 1.
    """

    weight: np.ndarray
    index: int
    keys: np.ndarray | None = None
    transitions_per_shard: np.ndarray | None = None
    requested_at_update: int | None = None
    waited_seconds: float = 0.0
    largest_weight: float = 1.0
