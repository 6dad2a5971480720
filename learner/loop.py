"""The learning loop: a bounded chunk of updates, counted and timed.

Owns the chunk and its report; must not import any transport or Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from learner.batch import to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.core import DivergedError, LearnerState, LearnReport, MinibatchSource
from learner.health import SkippedBatch, skipped_batch
from learner.update import SkippedUpdate, UpdateMeans, UpdateStep
from replay_service.shard import EmptyShardError

_NO_MEANS = UpdateMeans(*[math.nan] * 7)


class Learner:
    """Draws minibatches, learns from them and hands their TD errors back.

    The same seed and the same minibatches give bit-identical weights on a CPU.
    The number of threads is set for the whole process, as torch knows no other way.
    `record_skipped` is told of every batch whose update was not applied.

    Raises:
        ValueError: the network or the device does not fit, or threads is below 1.
    """

    def __init__(
        self,
        config: LearnerConfig,
        spec: NetworkSpec,
        source: MinibatchSource,
        *,
        seed: int,
        threads: int,
        record_skipped: Callable[[SkippedBatch], None] | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; give at least 1")
        torch.set_num_threads(threads)
        self._stack = spec.stack
        self._source = source
        self._step = UpdateStep(spec, config, seed=seed)
        self._record_skipped = record_skipped
        self._max_skipped = config.max_skipped_updates
        self._skipped_total = 0

    def learn(self, updates: int) -> tuple[LearnReport, np.ndarray]:
        """Applies `updates` updates; returns the report and a fresh copy of the weights [P] float32.

        Fewer, and the report says how many, where replay runs out of rows because a shard was lost. A
        minibatch whose loss or gradient is not finite changes nothing and keeps its old priorities; another
        is drawn in its place.

        Raises:
            ValueError: updates is below 1.
            DivergedError: learner.max_skipped_updates updates were skipped since this learner began.
        """
        if updates < 1:
            raise ValueError(f"updates is {updates}; a chunk has at least 1")
        skipped_before = self._skipped_total
        samples = 0
        lag_sum = wait_seconds = update_seconds = learning_rate = 0.0
        began = perf_counter()
        first_version = self._step.version
        while self._step.version < first_version + updates:
            version = self._step.version
            asked = perf_counter()
            try:
                minibatch = self._source.next_minibatch(version)
            except EmptyShardError:
                break
            drawn = perf_counter()
            learning_rate = self._step.learning_rate()
            outcome = self._step(to_batch(minibatch, self._stack, self._step.device))
            updated = perf_counter()
            wait_seconds += drawn - asked
            update_seconds += updated - drawn
            samples += len(minibatch.action)
            if isinstance(outcome, SkippedUpdate):
                self._skip(skipped_batch(minibatch, version, outcome))
                continue
            self._source.give_back(minibatch.index, outcome)
            lag_sum += version - int(minibatch.policy_version.sum()) / len(outcome)
        updates = self._step.version - first_version
        means = self._step.take_means() if updates else _NO_MEANS
        weights = self._step.weights()
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
            policy_lag_mean=lag_sum / updates if updates else math.nan,
            learning_rate=learning_rate,
            seconds={"wait": wait_seconds, "update": update_seconds, "other": other_seconds},
            statuses=self._source.statuses(),
            grad_norm_clipped_mean=means.grad_norm_clipped,
            target_gap=means.target_gap,
            skipped_updates=self._skipped_total - skipped_before,
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

    def _skip(self, batch: SkippedBatch) -> None:
        """Records and counts a skipped update; raises DivergedError where it is one too many."""
        self._skipped_total += 1
        if self._record_skipped is not None:
            self._record_skipped(batch)
        if self._skipped_total >= self._max_skipped:
            raise DivergedError(
                f"learning diverged: {self._skipped_total} updates were skipped, as many as "
                f"learner.max_skipped_updates allows; the last at version {batch.version}: "
                f"loss {batch.loss:g}, gradient norm {batch.grad_norm:g}. "
                "Lower learner.learning_rate, give learner.max_grad_norm, or check rewards and observations"
            )
