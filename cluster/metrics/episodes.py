"""Training episodes: their number, and the returns of the newest and of the first ones.

Owns these sums; must not import torch or ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from actors.core import RolloutReport

_RECENT_EPISODES = 100
_FEWEST_FIRST_EPISODES = 10


@dataclass
class Episodes:
    """Training episodes: how many have finished, returns and lengths of the last 100, and the first returns.

    first_returns are those from before learning began, at most 100; if they are fewer than 10, the next ones
    fill them up to 10.
    """

    finished: int = 0
    returns: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    first_returns: tuple[float, ...] = ()

    def add(self, report: RolloutReport, version: int) -> None:
        """Adds the episodes of a chunk. version: the learner's newest when it was reported."""
        self.finished += len(report.episode_returns)
        self.returns = (*self.returns, *report.episode_returns)[-_RECENT_EPISODES:]
        self.lengths = (*self.lengths, *report.episode_lengths)[-_RECENT_EPISODES:]
        if len(self.first_returns) < (_RECENT_EPISODES if version == 0 else _FEWEST_FIRST_EPISODES):
            self.first_returns = (*self.first_returns, *report.episode_returns)[:_RECENT_EPISODES]

    def metrics(self) -> dict[str, Any]:
        """The metrics of a Snapshot that concern training episodes."""
        return {
            "episodes_total": self.finished,
            "train_return_mean": mean_of(self.returns),
            "train_length_mean": mean_of(self.lengths),
            "first_return_mean": mean_of(self.first_returns),
        }


def mean_of(values: Sequence[float]) -> float | None:
    """The mean; None if there are no values."""
    return fmean(values) if values else None
