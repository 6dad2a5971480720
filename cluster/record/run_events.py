"""What happens in a run, as values: for the callbacks of a program that trains, and for trackers.

Owns these types; must not import torch or ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from cluster.metrics.snapshot import Snapshot
from cluster.settings.resolved import ResolvedConfig


@dataclass(frozen=True)
class Started:
    """The run begins, or goes on. config: every setting is chosen."""

    run_dir: Path
    config: ResolvedConfig


@dataclass(frozen=True)
class Measured:
    """Metrics were taken, as every metrics.every_seconds and once at the end. None or 0: not known yet."""

    snapshot: Snapshot


@dataclass(frozen=True)
class Evaluated:
    """An evaluation has ended.

    version: of the weights, the number of updates. returns, lengths: of each greedy episode. confirms:
    whether it is the second evaluation of this version, on other seeds, of which only the better ones get
    one.
    """

    version: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    confirms: bool

    @property
    def return_mean(self) -> float:
        """Mean of the returns."""
        return fmean(self.returns)


@dataclass(frozen=True)
class NewBest:
    """A version is the best so far, confirmed by a second evaluation. weights: the file that holds them."""

    version: int
    return_mean: float
    weights: Path


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint was saved in the folder `path`."""

    path: Path
    env_steps: int


@dataclass(frozen=True)
class Ended:
    """The run has ended, and its folder is complete. failed: not by a limit, its target or a request."""

    reason: str
    failed: bool


RunEvent = Started | Measured | Evaluated | NewBest | CheckpointSaved | Ended
