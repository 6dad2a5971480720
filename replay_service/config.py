"""Settings of the replay service (the `replay` section).

Owns names, defaults and single-value checks; must not import anything but `checks`.
"""

from dataclasses import dataclass
from typing import Literal

from replay_service.checks import above_zero, at_least, within

Compression = Literal["none", "lz4"]


@dataclass(frozen=True)
class ReplayConfig:
    """The section `replay`: how transitions are stored, sampled and persisted.

    cluster/settings/catalog.py says what each means.
    Prioritized sampling is that of Schaul et al. 2016 (arXiv:1511.05952). Outside of a run, a shard with
    persist None writes nothing, and sampling None is uniform.
    """

    capacity: int | None = None
    num_shards: int = 1
    sampling: Literal["uniform", "prioritized"] | None = None
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
