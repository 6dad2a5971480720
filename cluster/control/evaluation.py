"""Model selection: which version is evaluated next, and which one is the best.

Owns the two-evaluation rule; pure, imports no engine.
"""

from dataclasses import dataclass, field
from statistics import fmean, pstdev

from actors.core import EvaluationReport
from cluster.settings.config import EvaluationConfig


@dataclass(frozen=True)
class EvaluationRequest:
    """A request to play `episodes` greedy episodes of `version` with the seeds of seed_domain.

    confirms: whether it is the second evaluation of this version.
    """

    version: int
    seed_domain: int
    episodes: int
    confirms: bool


@dataclass(frozen=True)
class Best:
    """The best version: two evaluations found it better than those before.

    screened is the mean return of the first evaluation, score and std are mean and standard deviation of the
    second one's returns. std is None if it is not known any more.
    """

    version: int
    screened: float
    score: float
    std: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ModelSelectionState:
    """The part of a selection that a checkpoint keeps: not a version that waits for its second evaluation.

    last_domain: the newest seed domain in which episodes were played.
    """

    last_version: int = -1
    best: Best | None = None
    last_domain: int = -1


class ModelSelection:
    """A first evaluation screens a version; if it is above the best so far, a second one plays new seeds.

    Only the second mean is the version's score: the highest of many first means is biased upwards.

    Attributes:
        best: the best version; None until there is one.
        solved: whether both evaluations of a version reached the target return.
    """

    def __init__(
        self, config: EvaluationConfig, target_return: float | None, state: ModelSelectionState | None = None
    ) -> None:
        state = state or ModelSelectionState()
        self._config = config
        self._target_return = target_return
        self._candidate: tuple[int, float] | None = None
        self._last_version = state.last_version
        self._last_domain = state.last_domain
        self.best = state.best
        self.solved = False

    def state(self) -> ModelSelectionState:
        """The state for a checkpoint."""
        return ModelSelectionState(self._last_version, self.best, self._last_domain)

    def next_request(self, version: int, *, due: bool = False) -> EvaluationRequest | None:
        """The next evaluation now that `version` is the newest; None if none is due.

        due: do not wait until every_updates have passed.
        """
        if self._candidate is not None:
            return self._request(self._candidate[0], confirms=True)
        if version < self._last_version:
            # A learner that was replaced goes on from an older version, or begins anew.
            self._last_version = version - 1
        if version == self._last_version:
            return None
        if due or version >= max(self._last_version, 0) + self._config.every_updates:
            self._last_version = version
            return self._request(version, confirms=False)
        return None

    def lost(self, request: EvaluationRequest) -> None:
        """Handles an evaluation whose evaluator died: it will be requested again."""
        if not request.confirms:
            self._last_version = max(-1, request.version - self._config.every_updates)

    def withdraw(self) -> None:
        """Drops the version that waits for its second evaluation, because its weights are lost."""
        self._candidate = None

    def take(self, request: EvaluationRequest, report: EvaluationReport) -> bool:
        """Takes a result; returns whether its version is now the best."""
        mean = fmean(report.returns)
        if not request.confirms:
            if self.best is None or mean > self.best.score or self._passes(mean):
                self._candidate = (request.version, mean)
            return False
        assert self._candidate is not None
        (_, screened), self._candidate = self._candidate, None
        passed = self._passes(screened) and self._passes(mean)
        self.solved = self.solved or passed
        if self.best is not None and mean <= self.best.score:
            return False
        self.best = Best(request.version, screened, mean, pstdev(report.returns))
        return True

    def _passes(self, mean: float) -> bool:
        return self._target_return is not None and mean >= self._target_return

    def _request(self, version: int, *, confirms: bool) -> EvaluationRequest:
        # Every evaluation has its own seeds, so no two means share their luck. A version's number alone does
        # not tell: it comes twice if a learner goes back.
        self._last_domain = max(2 * version + confirms, self._last_domain + 1)
        return EvaluationRequest(version, self._last_domain, self._config.episodes, confirms)
