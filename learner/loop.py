"""The learning loop: a bounded chunk of updates, counted and timed.

Owns the chunk and its report; must not import any transport or Ray.
"""

from __future__ import annotations

import math
from time import perf_counter

import numpy as np
import torch

from learner.config import LearnerConfig, NetworkSpec
from learner.core import DivergedError, LearnerState, LearnReport, MinibatchSource
from learner.update import UpdateStep, to_batch


class Learner:
    """Draws minibatches, learns from them and hands their TD errors back.

    The same seed and the same minibatches give bit-identical weights on a CPU.
    The number of threads is set for the whole process, as torch knows no other way.

    Raises:
        ValueError: the network or the device does not fit, or threads is below 1.
    """

    def __init__(
        self, config: LearnerConfig, spec: NetworkSpec, source: MinibatchSource, *, seed: int, threads: int
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; give at least 1")
        torch.set_num_threads(threads)
        self._stack = spec.stack
        self._source = source
        self._step = UpdateStep(spec, config, seed=seed)

    def learn(self, updates: int) -> tuple[LearnReport, np.ndarray]:
        """Applies `updates` updates; returns the report and a fresh copy of the weights [P] float32.

        Raises:
            ValueError: updates is below 1.
            DivergedError: a TD error, a loss or a gradient was NaN or infinite.
        """
        if updates < 1:
            raise ValueError(f"updates is {updates}; a chunk has at least 1")
        samples = 0
        lag_sum = wait_seconds = update_seconds = learning_rate = 0.0
        began = perf_counter()
        for _ in range(updates):
            version = self._step.version
            asked = perf_counter()
            minibatch = self._source.next_minibatch(version)
            drawn = perf_counter()
            learning_rate = self._step.learning_rate()
            td_errors = self._step(to_batch(minibatch, self._stack, self._step.device))
            updated = perf_counter()
            # Here and not at the chunk's end: a priority that is not finite must never reach a shard.
            _require_finite(f"at update {version}, largest TD error", float(td_errors.max()))
            self._source.give_back(minibatch.index, td_errors)
            wait_seconds += drawn - asked
            update_seconds += updated - drawn
            samples += len(td_errors)
            lag_sum += version - float(minibatch.policy_version.mean())
        means = self._step.take_means()
        weights = self._step.weights()
        # The norm as well: a gradient that is infinite spoils the weights while its own loss is still finite.
        chunk = f"updates {self._step.version - updates} to {self._step.version}"
        _require_finite(f"over {chunk}, mean loss and mean gradient norm", means.loss, means.grad_norm)
        other_seconds = perf_counter() - began - wait_seconds - update_seconds
        report = LearnReport(
            version=self._step.version,
            updates=updates,
            samples=samples,
            loss_mean=means.loss,
            q_mean=means.q,
            target_mean=means.target,
            td_error_mean=means.td_error,
            grad_norm_mean=means.grad_norm,
            policy_lag_mean=lag_sum / updates,
            learning_rate=learning_rate,
            seconds={"wait": wait_seconds, "update": update_seconds, "other": other_seconds},
            statuses=self._source.statuses(),
        )
        return report, weights

    def weights(self) -> tuple[int, np.ndarray]:
        """The version and a fresh copy of its weights [P] float32."""
        return self._step.version, self._step.weights()

    def state(self) -> LearnerState:
        """Copies of all that later updates depend on."""
        return self._step.state()

    def restore(self, state: LearnerState) -> None:
        """Goes on from a state. Raises ValueError where it is of another network or optimiser."""
        self._step.restore(state)


def _require_finite(what: str, *figures: float) -> None:
    if not all(map(math.isfinite, figures)):
        raise DivergedError(
            f"learning diverged: {what} {', '.join(f'{figure:g}' for figure in figures)}. "
            "Lower learner.learning_rate, give learner.max_grad_norm, or check the rewards"
        )
