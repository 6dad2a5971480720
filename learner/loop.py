"""The learning loop: a bounded chunk of updates, counted and timed.

Owns the chunk and its report; must not import any transport or Ray.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from learner.config import LearnerConfig, NetworkSpec
from learner.core import DivergedError, LearnerState, LearnReport, MinibatchSource
from learner.health import SkippedBatch, skipped_batch
from learner.update import QueuedUpdate, SkippedUpdate, UpdateMeans, UpdateStep
from learner.upload import make_upload
from replay_service.histogram import Tally
from replay_service.messages import Minibatch
from replay_service.shard import EmptyShardError

_UPDATES_PER_LOOK = 16
_NO_MEANS = UpdateMeans(*[math.nan] * 10)


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
        self._source = source
        self._step = UpdateStep(spec, config, seed=seed)
        self._upload = make_upload(spec.stack, self._step.device, staged=self._step.queues)
        self._record_skipped = record_skipped
        self._max_skipped = config.max_skipped_updates
        self._skipped_total = 0
        self._ended_at = perf_counter()

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
        wait_seconds = draw_seconds = update_seconds = learning_rate = 0.0
        staleness_sum = staleness_max = 0
        lags = Tally()
        began = perf_counter()
        idle_seconds = began - self._ended_at
        first_version = self._step.version
        ran_dry = False
        in_work: deque[tuple[Minibatch, int, np.ndarray | SkippedUpdate | QueuedUpdate]] = deque()
        # A device works on one update while the next minibatch is drawn, uploaded and queued: its TD errors
        # come back an update late, and nobody waits for it. A CPU has no queue.
        depth = 1 if self._step.queues else 0
        while in_work or not (ran_dry or self._step.version >= first_version + updates):
            if not ran_dry and self._step.version < first_version + updates:
                version = self._step.version
                asked = perf_counter()
                try:
                    drawn_minibatch = self._source.next_minibatch(version)
                except EmptyShardError:
                    ran_dry = True
                    continue
                drawn = perf_counter()
                learning_rate = self._step.learning_rate()
                batch, minibatch = self._upload(drawn_minibatch)
                in_work.append(
                    (minibatch, version, (self._step.queue if self._step.queues else self._step)(batch))
                )
                wait_seconds += drawn_minibatch.waited_seconds
                draw_seconds += drawn - asked - drawn_minibatch.waited_seconds
                update_seconds += perf_counter() - drawn
                samples += len(minibatch.action)
                if len(in_work) <= depth:
                    continue
            asked = perf_counter()
            minibatch, version, outcome = in_work.popleft()
            if isinstance(outcome, QueuedUpdate):
                outcome = self._step.finish(outcome)
                update_seconds += perf_counter() - asked
            if isinstance(outcome, SkippedUpdate):
                self._skip(skipped_batch(minibatch, version, outcome))
                continue
            self._source.give_back(minibatch.index, outcome)
            if (version - first_version) % _UPDATES_PER_LOOK == 0:
                lags.add(version - minibatch.policy_version)
            if minibatch.asked_at_update is not None:
                staleness = version - minibatch.asked_at_update
                staleness_sum += staleness
                staleness_max = max(staleness_max, staleness)
        updates = self._step.version - first_version
        means = self._step.take_means() if updates else _NO_MEANS
        weights = self._step.weights()
        policy_lag = lags.read()
        self._ended_at = perf_counter()
        other_seconds = self._ended_at - began - wait_seconds - draw_seconds - update_seconds
        report = LearnReport(
            version=self._step.version,
            updates=updates,
            samples=samples,
            loss_mean=means.loss,
            q_mean=means.q,
            target_mean=means.target,
            td_error_mean=means.td_error,
            grad_norm_mean=means.grad_norm,
            learning_rate=learning_rate,
            seconds={
                "wait": wait_seconds,
                "draw": draw_seconds,
                "update": update_seconds,
                "other": other_seconds,
                "idle": idle_seconds,
            },
            statuses=self._source.statuses(),
            grad_norm_clipped_mean=means.grad_norm_clipped,
            target_gap=means.target_gap,
            skipped_updates=self._skipped_total - skipped_before,
            loss_max=means.loss_max,
            q_min=means.q_min,
            q_max=means.q_max,
            policy_lag=policy_lag,
            notes=self._step.take_notes(),
            priority_staleness_mean=staleness_sum / updates if updates else math.nan,
            priority_staleness_max=staleness_max,
        )
        return report, weights

    def weights(self) -> tuple[int, np.ndarray]:
        """The version and a fresh copy of its weights [P] float32."""
        return self._step.version, self._step.weights()

    def start_from(self, weights: np.ndarray) -> None:
        """Begins with weights [P] float32 instead of random ones. Raises ValueError on another size."""
        self._step.start_from(weights)

    def state(self) -> LearnerState:
        """Copies of all that later updates depend on."""
        return self._step.state()

    def restore(self, state: LearnerState) -> None:
        """Goes on from a state. Raises ValueError where it is of another network or optimizer."""
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
