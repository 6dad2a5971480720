"""The figures of a run as they come in with reports, and the snapshot of them at a moment.

Owns counters, recent episodes and the rates of the newest interval; pure, imports no engine.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from actors.core import EvaluationReport, RolloutReport
from cluster.judge import Best
from cluster.metrics import Snapshot
from cluster.pacing import Ledger, Pacing
from learner.core import LearnReport
from replay_service.messages import ShardStatus

_RECENT_EPISODES = 100


@dataclass
class _Interval:
    """What happened since the last snapshot, for rates and shares. started: on the monotonic clock."""

    started: float
    env_steps: int = 0
    updates: int = 0
    update_seconds: float = 0.0
    wait_seconds: float = 0.0
    actor_seconds: float = 0.0


class Figures:
    """Takes every report once; version is the learner's newest, as of the last one taken."""

    def __init__(self, started: float, now: float, num_actors: int) -> None:
        """started: when the run began, and now, both on the monotonic clock."""
        self.version = 0
        self.restarts = 0
        self.longest_evaluation_seconds = 0.0
        self._run_started = started
        self._num_actors = num_actors
        self._interval = _Interval(now)
        self._learned: LearnReport | None = None
        self._skipped_updates = 0
        self._epsilon: float | None = None
        self._policy_lag: int | None = None
        self._episodes = 0
        self._returns: collections.deque[float] = collections.deque(maxlen=_RECENT_EPISODES)
        self._lengths: collections.deque[int] = collections.deque(maxlen=_RECENT_EPISODES)
        self._evaluated: float | None = None

    def take_rollout(self, report: RolloutReport) -> None:
        """A chunk of acting."""
        self._epsilon = report.epsilon
        self._policy_lag = self.version - report.version
        self._episodes += len(report.episode_returns)
        self._returns.extend(report.episode_returns)
        self._lengths.extend(report.episode_lengths)
        self._interval.actor_seconds += sum(report.seconds.values())

    def take_learning(self, report: LearnReport) -> None:
        """A chunk of updates; one cut short before its first update has no means to show."""
        self.version = report.version
        self._skipped_updates += report.skipped_updates
        if report.updates:
            self._learned = report
        self._interval.update_seconds += report.seconds.get("update", 0.0)
        self._interval.wait_seconds += report.seconds.get("wait", 0.0)

    def take_evaluation(self, report: EvaluationReport) -> None:
        """One evaluation, of either kind."""
        self._evaluated = fmean(report.returns)
        self.longest_evaluation_seconds = max(self.longest_evaluation_seconds, report.seconds)

    def interval_seconds(self, now: float) -> float:
        """Seconds since the last snapshot."""
        return now - self._interval.started

    def snapshot(
        self,
        now: float,
        ledger: Ledger,
        pacing: Pacing,
        env_steps: int,
        statuses: Sequence[ShardStatus],
        best: Best | None,
    ) -> Snapshot:
        """All figures at `now`; rates and shares are of the time since the last snapshot, and begin anew."""
        interval, seconds = self._interval, max(self.interval_seconds(now), 1e-9)
        self._interval = _Interval(now, env_steps, self.version)
        learned = self._learned
        return Snapshot(
            run_seconds=now - self._run_started,
            env_steps_total=env_steps,
            episodes_total=self._episodes,
            inserted_transitions_total=ledger.inserted,
            sampled_transitions_total=ledger.sampled,
            updates_total=self.version,
            skipped_updates_total=self._skipped_updates,
            restarts_total=self.restarts,
            env_steps_per_second=(env_steps - interval.env_steps) / seconds,
            updates_per_second=(self.version - interval.updates) / seconds,
            samples_per_insert=pacing.achieved(ledger),
            samples_per_insert_target=pacing.samples_per_insert,
            epsilon=self._epsilon,
            train_return_mean=fmean(self._returns) if self._returns else None,
            train_length_mean=fmean(self._lengths) if self._lengths else None,
            evaluation_return_mean=self._evaluated,
            best_return_mean=best.score if best else None,
            loss=learned.loss_mean if learned else None,
            q_mean=learned.q_mean if learned else None,
            td_error_mean=learned.td_error_mean if learned else None,
            grad_norm_mean=learned.grad_norm_mean if learned else None,
            grad_norm_clipped_mean=learned.grad_norm_clipped_mean if learned else None,
            target_gap=learned.target_gap if learned else None,
            learning_rate=learned.learning_rate if learned else None,
            policy_lag_updates=self._policy_lag,
            sample_age_updates=learned.policy_lag_mean if learned else None,
            learner_update_share=interval.update_seconds / seconds,
            learner_wait_share=interval.wait_seconds / seconds,
            actor_busy_share=interval.actor_seconds / seconds / self._num_actors,
            replay_transitions=sum(status.count for status in statuses),
            replay_bytes=sum(status.stored_bytes for status in statuses),
        )
