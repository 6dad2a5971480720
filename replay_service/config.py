"""Settings of the replay service (the `replay` section).

Owns names, defaults and single-value checks; must not import anything outside the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compression = Literal["none", "lz4"]


@dataclass(frozen=True)
class ReplayConfig:
    """capacity is the total over all shards, in transitions.

    sampling "prioritized" draws p_i = (|TD| + priority_epsilon)^priority_exponent
    (Schaul et al. 2016, arXiv:1511.05952); importance weights use
    importance_exponent_start, annealed linearly to 1 over importance_anneal_updates.

    compression "lz4" keeps images (frame fields of single bytes) compressed: some 20 times less memory on
    Atari frames, about half the sampling throughput. Other fields are stored as they are.

    The learner draws ahead: up to prefetch_requests requests in flight, of up to minibatches_per_request
    minibatches each; how far, it chooses by measured times. 0 draws when a minibatch is needed.

    persist "checkpoint" writes to disk when a checkpoint is taken; "continuous" journals each block before
    it is acknowledged, so that all of it outlives a shard's process; "none": no checkpoints. Open (None) is
    "none" for a shard by itself, and "checkpoint" in a run. on_disk_full says whether the run then goes
    on in memory alone, or stops.
    """

    capacity: int | None = None
    num_shards: int = 1
    sampling: Literal["uniform", "prioritized"] = "uniform"
    priority_exponent: float = 0.6
    priority_epsilon: float = 1e-6
    importance_exponent_start: float = 0.4
    importance_anneal_updates: int = 100_000
    minibatches_per_request: int | None = None
    prefetch_requests: int = 4
    compression: Compression = "none"
    persist: Literal["none", "checkpoint", "continuous"] | None = None
    on_disk_full: Literal["continue", "stop"] = "continue"

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"replay.capacity is {self.capacity}; give at least 1 transition")
        if self.num_shards < 1:
            raise ValueError(f"replay.num_shards is {self.num_shards}; give at least 1")
        if not 0.0 <= self.priority_exponent <= 1.0:
            raise ValueError(f"replay.priority_exponent is {self.priority_exponent}; it lies in [0, 1]")
        if self.priority_epsilon <= 0.0:
            raise ValueError(
                f"replay.priority_epsilon is {self.priority_epsilon}; it must be above 0, "
                "or an item with TD error 0 could never be drawn again"
            )
        if not 0.0 <= self.importance_exponent_start <= 1.0:
            raise ValueError(
                f"replay.importance_exponent_start is {self.importance_exponent_start}; it lies in [0, 1]"
            )
        if self.importance_anneal_updates < 1:
            raise ValueError(
                f"replay.importance_anneal_updates is {self.importance_anneal_updates}; give at least 1"
            )
        if self.minibatches_per_request is not None and self.minibatches_per_request < 1:
            raise ValueError(
                f"replay.minibatches_per_request is {self.minibatches_per_request}; give at least 1"
            )
        if self.prefetch_requests < 0:
            raise ValueError(f"replay.prefetch_requests is {self.prefetch_requests}; give 0 or more")
