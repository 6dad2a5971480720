"""Evaluations during training: grants them one by one and records the best version.

Owns the weights of the version that waits for its second evaluation; must not import ray or torch.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from actors.core import MOST_EPISODE_STEPS, EnvRestart, EvaluationReport
from cluster.control.evaluation import EvaluationRequest
from cluster.engines.engine import EngineError, ObjectLost, Ref
from cluster.runtime.credits import as_argument
from cluster.runtime.evaluator_role import EvaluatorRole
from cluster.runtime.member import Member
from cluster.runtime.run_context import RunContext

_FEWEST_EPISODE_STEPS = 1_000


class Evaluations:
    """Grants one evaluation at a time and takes its report."""

    def __init__(
        self, context: RunContext, count_env_restarts: Callable[[Member[Any], Iterable[EnvRestart]], None]
    ) -> None:
        """count_env_restarts: called with the environments that the evaluator restarted."""
        self._context = context
        self._count_restarts = count_env_restarts
        self._candidate: Ref[np.ndarray] | None = None

    def grant(self, weights: Ref[np.ndarray] | None, *, due: bool) -> bool:
        """Grants the next evaluation if the evaluator is free; returns whether it did.

        weights: the newest, of version counters.version. due: do not wait for evaluation.every_updates.
        """
        evaluator = self._context.fleet.evaluator
        if not evaluator.is_up or evaluator.in_flight or weights is None:
            return False
        request = self._context.selection.next_request(self._context.counters.version, due=due)
        if request is None:
            return False
        if not request.confirms or self._candidate is None:
            self._candidate = weights
        self._context.fleet.grant(
            evaluator,
            EvaluatorRole.evaluate,
            request.version,
            as_argument(self._candidate),
            request.seed_domain,
            request.episodes,
            self._max_episode_steps(),
            then=partial(self._take, request, self._candidate),
            lost=partial(self._lose, request),
            kind="evaluate",
        )
        return True

    def _max_episode_steps(self) -> int:
        """Where the environment has no limit, greedy episodes are no longer than recent training episodes: a
        policy that walks in circles would make an evaluation take longer than all training."""
        if self._context.fleet.spec.max_episode_steps is not None:
            return MOST_EPISODE_STEPS
        longest = max(self._context.counters.state().lengths, default=0)
        return min(MOST_EPISODE_STEPS, max(_FEWEST_EPISODE_STEPS, longest))

    def _take(
        self, request: EvaluationRequest, weights: Ref[np.ndarray], report: EvaluationReport | None
    ) -> None:
        context, selection = self._context, self._context.selection
        if report is None:  # more steps are left than fit into one chunk
            context.fleet.grant(
                context.fleet.evaluator,
                EvaluatorRole.go_on,
                then=partial(self._take, request, weights),
                lost=partial(self._lose, request),
                kind="evaluate",
            )
            return
        context.counters.take_evaluation(report)
        self._count_restarts(context.fleet.evaluator, report.env_restarts)
        context.recorder.evaluation(request, report)
        try:
            # Fetched before the version becomes the best: the machine that holds them may be gone.
            flat = context.engine.get(weights) if request.confirms else None
        except ObjectLost:
            selection.withdraw()
            return
        if selection.take(request, report) and flat is not None and selection.best is not None:
            context.recorder.best(selection.best, flat)

    def _lose(self, request: EvaluationRequest, error: EngineError) -> None:
        self._context.selection.lost(request)
        if isinstance(error, ObjectLost):
            self._context.selection.withdraw()
