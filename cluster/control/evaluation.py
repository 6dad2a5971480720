"""The judge: which version is evaluated next, and which one is the best.

Owns the two-evaluation rule; pure, imports no engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, pstdev

from actors.core import EvaluationReport
from cluster.settings.config import EvaluationConfig


@dataclass(frozen=True)
class EvaluationRequest:
    """Play `episodes` greedy episodes of `version` with the seeds of seed_domain."""

    version: int
    seed_domain: int
    episodes: int
    confirms: bool


@dataclass(frozen=True)
class Best:
    """A version confirmed by a second evaluation: score is the mean of that one, screened of the first.

    std: of the second one's returns; None where it is not known any more.
    """

    version: int
    screened: float
    score: float
    std: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ModelSelectionState:
    """What a run that is resumed goes on judging from. A version that waited for its confirmation is not."""

    last_version: int = -1
    best: Best | None = None


class ModelSelection:
    """A first evaluation screens a version; one above the best so far is played again on fresh seeds.

    Only the second mean counts as its score: the highest of many first means is biased upwards.
    """

    def __init__(
        self, config: EvaluationConfig, target_return: float | None, state: ModelSelectionState | None = None
    ) -> None:
        state = state or ModelSelectionState()
        self._config = config
        self._target_return = target_return
        self._candidate: tuple[int, float] | None = None
        self._last_version = state.last_version
        self.best = state.best
        self.solved = False

    def state(self) -> ModelSelectionState:
        """For a cut."""
        return ModelSelectionState(self._last_version, self.best)

    def next_request(self, version: int, *, due: bool = False) -> EvaluationRequest | None:
        """What to evaluate now that `version` is the newest; `due` does not wait for every_updates."""
        if self._candidate is not None:
            return self._request(self._candidate[0], confirms=True)
        if version == self._last_version:
            return None
        if due or version >= max(self._last_version, 0) + self._config.every_updates:
            self._last_version = version
            return self._request(version, confirms=False)
        return None

    def lost(self, request: EvaluationRequest) -> None:
        """The evaluation will not be reported: its evaluator died. It is asked for again."""
        if not request.confirms:
            self._last_version = max(-1, request.version - self._config.every_updates)

    def withdraw(self) -> None:
        """The weights that waited for their confirmation are lost, and with them the candidate."""
        self._candidate = None

    def take(self, request: EvaluationRequest, report: EvaluationReport) -> bool:
        """Takes a result; True if its version is now the best."""
        mean = fmean(report.returns)
        if not request.confirms:
            if self.best is None or mean > self.best.score or self._passes(mean):
                self._candidate = (request.version, mean)
            return False
        assert self._candidate is not None
        screened = self._candidate[1]
        self._candidate = None
        passed = self._passes(screened) and self._passes(mean)
        if self.best is not None and mean <= self.best.score and not passed:
            return False
        self.best = Best(request.version, screened, mean, pstdev(report.returns))
        self.solved = self.solved or passed
        return True

    def _passes(self, mean: float) -> bool:
        return self._target_return is not None and mean >= self._target_return

    def _request(self, version: int, *, confirms: bool) -> EvaluationRequest:
        # Every evaluation has seeds of its own, so no two means share their luck.
        return EvaluationRequest(version, 2 * version + confirms, self._config.episodes, confirms)
