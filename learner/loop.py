"""The main loop of learning: a bounded chunk of updates, counted and timed.

Owns the chunk and its report; must not import any transport or Ray.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from learner.batch import to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.core import DivergedError, LearnReport, MinibatchSource
from learner.optimizer import learning_rate
from learner.skipped_updates import SkippedBatch, SkippedUpdate, skipped_batch
from learner.update import Outcome, QueuedUpdate, UpdateStep
from learner.upload import StagedUpload
from replay_service.histogram import Histogram, histogram_of
from replay_service.messages import Minibatch
from replay_service.phase_timer import PhaseTimer
from replay_service.shard import EmptyShardError

_POLICY_LAG_UPDATES = 16
"""The policy lag is counted in one update of this many."""

_Started = tuple[Minibatch, int, Outcome | QueuedUpdate]
"""A minibatch, the version of the weights when its update was started, and that update."""


@dataclass(eq=False)
class _Counts:
    """Counts over one chunk. staleness: updates between requesting a minibatch and learning from it."""

    first_version: int
    samples: int = 0
    policy_lag: Histogram = field(default_factory=Histogram)
    skipped_updates: int = 0
    staleness_sum: int = 0
    staleness_max: int = 0


class Learner:
    """Draws minibatches, learns from them and gives their TD errors back.

    The same seed and the same minibatches give bit-identical weights on a CPU. `threads` sets torch's threads
    for the whole process. `record_skipped` is called for each skipped update. `queues` and
    `samples_per_insert`: see UpdateStep.

    Raises:
        ValueError: the network or the device does not fit, or threads is below 1.

    Attributes:
        step: the weights, and all else that updates change.
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
        queues: bool | None = None,
        samples_per_insert: float = 1.0,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; give at least 1")
        torch.set_num_threads(threads)
        self._config = config
        self._source = source
        self.step = UpdateStep(spec, config, seed=seed, queues=queues, samples_per_insert=samples_per_insert)
        self._stack = spec.stack
        self._staged = StagedUpload(spec.stack, self.step.device) if self.step.queues else None
        # A device with a queue works on one update while the next minibatch is drawn, uploaded and queued.
        # TD errors then come back one update late, but the device need not wait for the host.
        self._max_started = 2 if self.step.queues else 1
        self._record_skipped = record_skipped
        self._skipped_total = 0
        self._timer = PhaseTimer("idle", "wait", "draw", "update", "other")

    def learn(self, updates: int, seconds: float = math.inf) -> tuple[LearnReport, np.ndarray]:
        """Applies `updates` updates; returns the report and a fresh copy of the weights [P] float32.

        After `seconds`, or if replay runs out of transitions because a shard was lost, it applies fewer.
        A minibatch whose loss or gradient is not finite changes nothing and keeps its old priorities; another
        one is drawn.

        Raises:
            ValueError: updates is below 1.
            DivergedError: learner.max_skipped_updates updates were skipped since this learner began.
        """
        if updates < 1:
            raise ValueError(f"updates is {updates}; a chunk has at least 1")
        self._timer.enter("other")
        counts = _Counts(self.step.version)
        end = self.step.version + updates
        deadline = time.monotonic() + seconds
        started: deque[_Started] = deque()
        while started or self.step.version < end:
            if self.step.version < end and len(started) < self._max_started:
                try:
                    started.append(self._start())
                except EmptyShardError:
                    end = 0  # draws no more, and finishes what was started
            else:
                self._finish(started.popleft(), counts)
                if time.monotonic() >= deadline:
                    end = 0
        self._timer.enter("other")
        weights = self.step.weights()
        return self._report(counts), weights

    def _start(self) -> _Started:
        """Draws a minibatch and starts an update on it."""
        version = self.step.version
        self._timer.enter("draw")
        drawn = self._source.next_minibatch(version)
        self._timer.enter("update")
        self._timer.shift(drawn.waited_seconds, "draw", "wait")
        if self._staged is None:
            return drawn, version, self.step.start(to_batch(drawn, self._stack, self.step.device))
        batch, minibatch = self._staged(drawn)
        return minibatch, version, self.step.start(batch)

    def _finish(self, started: _Started, counts: _Counts) -> None:
        """Waits for an update, counts it, and gives its TD errors back or records that it was skipped."""
        minibatch, version, update = started
        self._timer.enter("update")
        outcome = self.step.finish(update)
        self._timer.enter("other")
        counts.samples += len(minibatch.action)
        if isinstance(outcome, SkippedUpdate):
            counts.skipped_updates += 1
            self._skip(skipped_batch(minibatch, version, outcome))
            return
        self._source.give_back(minibatch.index, outcome)
        if (version - counts.first_version) % _POLICY_LAG_UPDATES == 0:
            counts.policy_lag += histogram_of(version - minibatch.policy_version)
        if minibatch.requested_at_update is not None:
            staleness = version - minibatch.requested_at_update
            counts.staleness_sum += staleness
            counts.staleness_max = max(counts.staleness_max, staleness)

    def _skip(self, batch: SkippedBatch) -> None:
        """Records and counts a skipped update; raises DivergedError if too many were skipped."""
        self._skipped_total += 1
        if self._record_skipped is not None:
            self._record_skipped(batch)
        if self._skipped_total >= self._config.max_skipped_updates:
            raise DivergedError(
                f"learning diverged: {self._skipped_total} updates were skipped, as many as "
                f"learner.max_skipped_updates allows; the last at version {batch.version}: "
                f"loss {batch.loss:g}, gradient norm {batch.grad_norm:g}. "
                "Lower learner.learning_rate, give learner.max_grad_norm, or check rewards and observations"
            )

    def _report(self, counts: _Counts) -> LearnReport:
        """The report of a chunk that has ended."""
        updates = self.step.version - counts.first_version
        metrics = self.step.take_metrics()
        self._timer.enter("idle")
        return LearnReport(
            **vars(metrics),
            version=self.step.version,
            updates=updates,
            samples=counts.samples,
            skipped_updates=counts.skipped_updates,
            learning_rate=learning_rate(self._config, max(self.step.version - 1, 0)),
            seconds=self._timer.take(),
            statuses=self._source.statuses(),
            policy_lag=counts.policy_lag,
            priority_staleness_mean=counts.staleness_sum / updates if updates else math.nan,
            priority_staleness_max=counts.staleness_max,
            notes=self.step.take_notes(),
        )
