"""Model selection: which version is evaluated next, and which one is the best.

Owns the two-evaluation rule; pure, imports no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev

from actors.core import EvaluationReport
from cluster.control.significance import Sample, mean_lower_bound
from cluster.settings.resolved import ResolvedEvaluation

_ALPHA = 0.01
_MOST_TIMES = 16


@dataclass(frozen=True)
class EvaluationRequest:
    """A request to play `episodes` greedy episodes of `version` with the seeds of seed_domain.

    confirms: whether it belongs to the second evaluation of this version.
    """

    version: int
    seed_domain: int
    episodes: int
    confirms: bool


@dataclass(frozen=True)
class Best:
    """The best version: two evaluations found it better than those before.

    screened is the mean return of the first evaluation, score and std are mean and standard deviation of the
    second one's returns, however many it took. std is None if it is not known any more.
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


@dataclass(frozen=True)
class _Candidate:
    """A version in its second evaluation, with the returns of both so far."""

    version: int
    screening: tuple[float, ...]
    returns: tuple[float, ...] = ()


class ModelSelection:
    """A first evaluation screens a version; if it is above the best so far, a second one plays new seeds.

    Only the second mean is the version's score: the highest of many first means is biased upwards.

    The target return is reached if both means reach it, and the second one's lower confidence bound, too.
    Where only that is missing, as many episodes again are played, up to 16 times those of an evaluation.
    The bound counts the worst return of both evaluations once more, so that a second evaluation without any
    failure does not prove by its lack of spread that there are none.

    Attributes:
        best: the best version; None until there is one.
        solved: whether a version reached the target return.
    """

    def __init__(
        self,
        config: ResolvedEvaluation,
        target_return: float | None,
        state: ModelSelectionState | None = None,
    ) -> None:
        state = state or ModelSelectionState()
        self._config = config
        self._target_return = target_return
        self._candidate: _Candidate | None = None
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
            episodes = len(self._candidate.returns) or self._config.episodes
            return self._request(self._candidate.version, episodes, confirms=True)
        if version < self._last_version:
            # A learner that was replaced goes on from an older version, or begins anew.
            self._last_version = version - 1
        if version == self._last_version:
            return None
        if due or version >= max(self._last_version, 0) + self._config.every_updates:
            self._last_version = version
            return self._request(version, self._config.episodes, confirms=False)
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
        if not request.confirms:
            mean = fmean(report.returns)
            if self.best is None or mean > self.best.score or self._passes(mean):
                self._candidate = _Candidate(request.version, report.returns)
            return False
        candidate, self._candidate = self._candidate, None
        assert candidate is not None
        returns, screened = (*candidate.returns, *report.returns), fmean(candidate.screening)
        mean, passed = fmean(returns), False
        if self._passes(screened) and self._passes(mean):
            passed = self._passes(_lower_bound((*returns, min(*returns, *candidate.screening))))
            if not passed and 2 * len(returns) <= _MOST_TIMES * self._config.episodes:
                self._candidate = replace(candidate, returns=returns)
                return False
        self.solved = self.solved or passed
        if self.best is not None and mean <= self.best.score:
            return False
        self.best = Best(request.version, screened, mean, pstdev(returns))
        return True

    def _passes(self, mean: float) -> bool:
        return self._target_return is not None and mean >= self._target_return

    def _request(self, version: int, episodes: int, *, confirms: bool) -> EvaluationRequest:
        # Every evaluation has its own seeds, so no two means share their luck. A version's number alone does
        # not tell: it comes twice if a learner goes back.
        self._last_domain = max(2 * version + confirms, self._last_domain + 1)
        return EvaluationRequest(version, self._last_domain, episodes, confirms)


def _lower_bound(returns: Sequence[float]) -> float:
    """The true mean return is below it with probability _ALPHA."""
    return mean_lower_bound(Sample(fmean(returns), pstdev(returns), len(returns)), _ALPHA)
