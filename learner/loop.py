"""The main loop of learning: a bounded chunk of updates, counted and timed.

Owns the chunk and its report; must not import any transport or Ray.
"""

import math
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from learner.batch import to_batch
from learner.choices import choose
from learner.config import LearnerConfig, NetworkSpec
from learner.core import DivergedError, LearnerState, LearnReport, MinibatchSource, Note
from learner.freed_memory import keep_freed_memory
from learner.optimizer import LearningRate
from learner.ranks import ONE_RANK, Intent, Ranks, are_equal, from_first_, transitions_of_others
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
class _Chunk:
    """A chunk in work, and its counts.

    end: the version with which it ends; 0 once no further update may begin. deadline: on the monotonic clock.
    staleness: updates between requesting a minibatch and learning from it.
    """

    first_version: int
    end: int
    deadline: float
    is_late: bool = False
    samples: int = 0
    policy_lag: Histogram = field(default_factory=Histogram)
    skipped_updates: int = 0
    staleness_sum: int = 0
    staleness_max: int = 0
    unequal_weights: bool = False


class Learner:
    """Draws minibatches, learns from them and gives their TD errors back.

    The same seed and the same minibatches give bit-identical weights on a CPU. `threads` sets torch's threads
    for the whole process. `record_skipped` is called for each skipped update. `queues` and
    `samples_per_insert`: see UpdateStep. `ranks`: those with which this learner is one. Each of them has such
    a loop, whose source draws only its part of each minibatch; all are asked for the same chunks. `measures`:
    whether timed updates choose what the config leaves to the processor; see learner/choices.py. Weights then
    round as the choice has it.

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
        ranks: Ranks = ONE_RANK,
        measures: bool = False,
    ) -> None:
        self.use_threads(threads)
        keep_freed_memory()
        self._notes: tuple[Note, ...] = ()
        if measures:
            config, self._notes = choose(config, spec)
        self._config = config
        self._learning_rate = LearningRate(config)
        self._source = source
        self._ranks = ranks
        self._other_transitions = sum(transitions_of_others(ranks, config.batch_size))
        self.step = UpdateStep(
            spec, config, seed=seed, queues=queues, samples_per_insert=samples_per_insert, ranks=ranks
        )
        self._stack = spec.stack
        self._staged = StagedUpload(spec.stack, self.step.device) if self.step.queues else None
        # A device with a queue works on one update while the next minibatch is drawn, uploaded and queued.
        # TD errors then come back one update late, but the device need not wait for the host.
        self._max_started = 2 if self.step.queues else 1
        self._record_skipped = record_skipped
        self._skipped_total = 0
        exchange = ("exchange",) if ranks.size > 1 else ()
        self._timer = PhaseTimer("idle", "wait", "draw", "update", "other", *exchange)

    def use_threads(self, threads: int) -> None:
        """Uses so many threads, in the whole process. Raises ValueError if that is below 1."""
        if threads < 1:
            raise ValueError(f"threads is {threads}; give at least 1")
        torch.set_num_threads(threads)
        self._threads = threads

    def learn(self, updates: int, seconds: float = math.inf) -> tuple[LearnReport, np.ndarray]:
        """Applies `updates` updates; returns the report and a fresh copy of the weights [P] float32.

        After `seconds`, or if replay runs out of transitions because a shard was lost, it applies fewer.
        A minibatch whose loss or gradient is not finite changes nothing and keeps its old priorities; another
        one is drawn. Of several ranks all apply the same number, and skip the same ones.

        Raises:
            ValueError: updates is below 1.
            DivergedError: learner.max_skipped_updates updates were skipped since this learner began.
            RankLostError: another rank is gone.
        """
        if updates < 1:
            raise ValueError(f"updates is {updates}; a chunk has at least 1")
        self._timer.enter("other")
        version = self.step.version
        chunk = _Chunk(version, version + updates, time.monotonic() + seconds)
        started: deque[_Started] = deque()
        while started or self.step.version < chunk.end:
            if self.step.version < chunk.end and len(started) < self._max_started:
                if (update := self._start(chunk)) is not None:
                    started.append(update)
            else:
                self._finish(started.popleft(), chunk)
        self._timer.enter("other")
        weights = self.step.weights()
        if self._ranks.size > 1:
            weights = self._made_equal(weights, chunk)
        return self._report(chunk), weights

    def _start(self, chunk: _Chunk) -> _Started | None:
        """Draws a minibatch and starts an update on it; None if there are no transitions to draw."""
        version = self.step.version
        self._timer.enter("draw")
        drawn = self._drawn(version)
        if self._ranks.size > 1:
            drawn = self._agreed(drawn, chunk)
        if drawn is None:
            chunk.end = 0  # draws no more, and finishes what was started
            return None
        self._timer.enter("update")
        if self._staged is None:
            minibatch, update = drawn, self.step.start(to_batch(drawn, self._stack, self.step.device))
        else:
            batch, minibatch = self._staged(drawn)
            update = self.step.start(batch)
        self._count_exchange("update")
        return minibatch, version, update

    def _drawn(self, version: int) -> Minibatch | None:
        """The next minibatch; None if replay holds no transitions."""
        try:
            drawn = self._source.next_minibatch(version)
        except EmptyShardError:
            return None
        self._timer.shift(drawn.waited_seconds, "draw", "wait")
        return drawn

    def _agreed(self, drawn: Minibatch | None, chunk: _Chunk) -> Minibatch | None:
        """What this rank learns from, with weights as part of the whole; None if a rank could draw nothing.

        The weights of the whole minibatch are divided by one maximum, and its mean is over all of it.
        """
        largest = 0.0 if drawn is None else drawn.largest_weight
        agreed = self._ranks.agree(Intent(drawn is None, chunk.is_late, largest))
        self._count_exchange("draw")
        if agreed.is_late:
            chunk.end = 0  # with this update
        if drawn is None or agreed.is_empty:
            return None
        own = len(drawn.action)
        share = drawn.largest_weight / agreed.largest_weight * own / (own + self._other_transitions)
        return replace(drawn, weight=drawn.weight * np.float32(share))

    def _finish(self, started: _Started, chunk: _Chunk) -> None:
        """Waits for an update, counts it, and gives its TD errors back or records that it was skipped."""
        minibatch, version, update = started
        self._timer.enter("update")
        outcome = self.step.finish(update)
        self._timer.enter("other")
        chunk.is_late = time.monotonic() >= chunk.deadline
        if chunk.is_late and self._ranks.size == 1:
            chunk.end = 0  # several ranks first tell each other
        chunk.samples += len(minibatch.action) + self._other_transitions
        if isinstance(outcome, SkippedUpdate):
            chunk.skipped_updates += 1
            self._skip(skipped_batch(minibatch, version, outcome))
            return
        self._source.give_back(minibatch.index, outcome)
        if (version - chunk.first_version) % _POLICY_LAG_UPDATES == 0:
            chunk.policy_lag += histogram_of(version - minibatch.policy_version)
        if minibatch.requested_at_update is not None:
            staleness = version - minibatch.requested_at_update
            chunk.staleness_sum += staleness
            chunk.staleness_max = max(chunk.staleness_max, staleness)

    def _count_exchange(self, phase: str) -> None:
        """Moves the time of exchanges between ranks out of the phase in which it was counted."""
        if self._ranks.size > 1:
            self._timer.shift(self._ranks.take_seconds(), phase, "exchange")

    def _made_equal(self, weights: np.ndarray, chunk: _Chunk) -> np.ndarray:
        """The weights that all ranks have; those of rank 0, with all of its state, if they are not equal.

        The same arithmetic gives the same bits on machines of one kind; those of several kinds may round
        differently.
        """
        if not are_equal(self._ranks, zlib.crc32(weights.data)):
            chunk.unequal_weights = True
            tensors = {name: torch.tensor(array) for name, array in self.step.state().tensors.items()}
            for tensor in tensors.values():
                from_first_(self._ranks, tensor)
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            self.step.restore(LearnerState(self.step.version, arrays))
            weights = self.step.weights()
        self._count_exchange("other")
        return weights

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

    def _report(self, chunk: _Chunk) -> LearnReport:
        """The report of a chunk that has ended."""
        updates = self.step.version - chunk.first_version
        metrics = self.step.take_metrics()
        notes, self._notes = (*self._notes, *self.step.take_notes()), ()
        self._timer.enter("idle")
        return LearnReport(
            **vars(metrics),
            version=self.step.version,
            updates=updates,
            samples=chunk.samples,
            skipped_updates=chunk.skipped_updates,
            learning_rate=self._learning_rate.of(max(self.step.version - 1, 0)),
            seconds=self._timer.take(),
            statuses=self._source.statuses(),
            policy_lag=chunk.policy_lag,
            priority_staleness_mean=chunk.staleness_sum / updates if updates else math.nan,
            priority_staleness_max=chunk.staleness_max,
            threads=self._threads,
            rank=self._ranks.rank,
            unequal_weights=int(chunk.unequal_weights),
            notes=notes,
        )
