"""Settings of the replay service (the `replay` section).

Owns names, defaults and single-value checks; must not import anything but `checks`.
"""

from dataclasses import dataclass
from typing import Literal

from replay_service.checks import above_zero, at_least, within

Compression = Literal["none", "lz4"]


@dataclass(frozen=True)
class ReplayConfig:
    """How replay stores, samples and persists transitions. capacity: total over all shards, in transitions.

    sampling: "prioritized" draws in proportion to p_i = (|TD| + priority_epsilon)^priority_exponent
    (Schaul et al. 2016, arXiv:1511.05952). The exponent of the importance weights rises linearly from
    importance_exponent_start to 1 over importance_anneal_updates.

    compression: "lz4" compresses images (frame fields of single bytes): about 20 times less memory on Atari
    frames, about half the sampling throughput. Other fields stay uncompressed.

    prefetch_requests, minibatches_per_request: the learner requests minibatches ahead of need. At most
    prefetch_requests requests are in flight, each of at most minibatches_per_request minibatches; measured
    times decide how many. With 0 requests in flight the learner draws each minibatch when it needs it.

    persist: "checkpoint" writes to disk when a checkpoint is taken. "continuous" journals each block before
    its push is acknowledged, so acknowledged blocks outlive the shard's process. "none" writes nothing and
    takes no checkpoints. None means "checkpoint" in a run, and "none" for a shard that is used outside a run.

    on_disk_full: "continue" goes on in memory only, "stop" ends the run.
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
        sizes = ("capacity", "num_shards", "minibatches_per_request")
        at_least(1, "replay", self, *sizes, "importance_anneal_updates")
        at_least(0, "replay", self, "prefetch_requests")
        exponents = ("priority_exponent", "importance_exponent_start")
        within(0.0, 1.0, "replay", self, *exponents, cure="give a number from 0 to 1")
        above_zero(
            "replay",
            self,
            "priority_epsilon",
            cure="it must be above 0, or a transition with TD error 0 could never be drawn again",
        )
