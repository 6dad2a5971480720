"""Training episodes: how many there were, and what the last and the first ones returned.

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

    first_returns are from before learning began, up to 100; if those are fewer than 10, later ones join them.
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
        """Their number and means."""
        return {
            "episodes_total": self.finished,
            "train_return_mean": mean_of(self.returns),
            "train_length_mean": mean_of(self.lengths),
            "first_return_mean": mean_of(self.first_returns),
        }


def mean_of(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return fmean(values) if values else None
