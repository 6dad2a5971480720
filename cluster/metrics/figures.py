"""The figures of a run as they come in with reports, and the snapshot of them at a moment.

Owns counters, recent episodes and the rates of the newest interval; pure, imports no engine.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import get_args

from actors.core import EnvRestartCause, EvaluationReport, RolloutReport
from cluster.control.evaluation import Best
from cluster.control.pacing import Ledger, Pacing
from cluster.metrics.accounts import Accounts, Checkpointed, FleetMetrics, RestartCause
from cluster.metrics.snapshot import Snapshot
from cluster.metrics.totals import ShardTotals
from cluster.metrics.usage import MachineUsage
from learner.core import LearnReport
from replay_service.messages import ProcessUsage

_RECENT_EPISODES = 100
_FEWEST_FIRST_EPISODES = 10


@dataclass(frozen=True)
class CountersState:
    """What a run that is resumed goes on counting from. version: the learner's newest.

    updates counts every update applied, also those that were lost with a learner; sampled_transitions
    what they consumed.
    """

    version: int = 0
    updates: int = 0
    sampled_transitions: int = 0
    skipped_updates: int = 0
    restarts: int = 0
    episodes: int = 0
    returns: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    first_returns: tuple[float, ...] = ()
    evaluation_return_mean: float | None = None
    env_restarts: Mapping[EnvRestartCause, int] = field(default_factory=dict)


@dataclass
class _Interval:
    """What happened since the last snapshot, for rates and shares. started: on the monotonic clock."""

    started: float
    updates: int = 0
    update_seconds: float = 0.0
    wait_seconds: float = 0.0


@dataclass
class _Actor:
    """One actor's steps and seconds since the last look at them, and its pace as of then.

    Chunks may be farther apart than looks: the pace holds for twice as long as what it was measured over.
    """

    steps: int = 0
    worked_seconds: float = 0.0
    seconds: float = 0.0
    steps_per_second: float = 0.0
    busy_share: float = 0.0
    measured_seconds: float = 0.0
    measured_at: float = 0.0

    def look(self, now: float) -> None:
        """Measures its pace anew, where it has told anything since the last look."""
        if self.seconds > 0.0:
            self.steps_per_second = self.steps / self.seconds
            self.busy_share = self.worked_seconds / self.seconds
            self.measured_seconds, self.measured_at = self.seconds, now
            self.steps, self.worked_seconds, self.seconds = 0, 0.0, 0.0
        elif now - self.measured_at > 2.0 * self.measured_seconds:
            self.steps_per_second = self.busy_share = 0.0


class Figures:
    """Takes every report once; version is the learner's newest, as of the last one taken.

    updates counts all that were applied: after a learner was lost it is ahead of its successor's version.
    """

    def __init__(
        self,
        started: float,
        now: float,
        num_actors: int,
        state: CountersState | None = None,
        *,
        accounts: Accounts,
    ) -> None:
        """started: when the run began, and now, both on the monotonic clock. state: where to go on from.

        accounts: what is kept beside; in the serial runtime over all the lives of a run.
        """
        state = state or CountersState()
        self.version = state.version
        self.updates = state.updates
        self.sampled_transitions = state.sampled_transitions
        self.restarts = state.restarts
        self.longest_evaluation_seconds = 0.0
        self._run_started = started
        self._num_actors = num_actors
        self._interval = _Interval(now)
        self._actors: dict[int, _Actor] = {}
        self._learned: LearnReport | None = None
        self._skipped_updates = state.skipped_updates
        self._epsilon: float | None = None
        self._policy_lag: int | None = None
        self._episodes = state.episodes
        self._returns: collections.deque[float] = collections.deque(state.returns, _RECENT_EPISODES)
        self._lengths: collections.deque[int] = collections.deque(state.lengths, _RECENT_EPISODES)
        self._first_returns = state.first_returns
        self._evaluated = state.evaluation_return_mean
        self._env_restarts: collections.Counter[EnvRestartCause] = collections.Counter(state.env_restarts)
        self._accounts = accounts

    def state(self) -> CountersState:
        """For a cut."""
        return CountersState(
            version=self.version,
            updates=self.updates,
            sampled_transitions=self.sampled_transitions,
            skipped_updates=self._skipped_updates,
            restarts=self.restarts,
            episodes=self._episodes,
            returns=tuple(self._returns),
            lengths=tuple(self._lengths),
            first_returns=self._first_returns,
            evaluation_return_mean=self._evaluated,
            env_restarts=dict(self._env_restarts),
        )

    @property
    def env_restarts(self) -> int:
        """Environments made anew since the run began, whatever the cause."""
        return self._env_restarts.total()

    def resumed(self, now: float) -> None:
        """The run goes on from here: what was counted before is no rate of this interval."""
        self._interval = _Interval(now, self.updates)

    def take_rollout(self, report: RolloutReport) -> None:
        """A chunk of acting."""
        self._epsilon = report.epsilon
        self._policy_lag = self.version - report.version
        self._episodes += len(report.episode_returns)
        self._returns.extend(report.episode_returns)
        # Of what nobody had learned yet; a few at least, where episodes last longer than that.
        if len(self._first_returns) < (_RECENT_EPISODES if self.version == 0 else _FEWEST_FIRST_EPISODES):
            self._first_returns = (*self._first_returns, *report.episode_returns)[:_RECENT_EPISODES]
        self._lengths.extend(report.episode_lengths)
        actor = self._actors.setdefault(report.actor, _Actor())
        actor.steps += report.env_steps
        actor.seconds += sum(report.seconds.values())
        actor.worked_seconds += report.worked_seconds
        self._accounts.take_rollout(report, self._policy_lag)

    def take_learning(self, report: LearnReport, batch_size: int) -> None:
        """A chunk of updates; one cut short before its first update has no means to show."""
        self.version = report.version
        self.updates += report.updates
        self.sampled_transitions += report.updates * batch_size
        self._skipped_updates += report.skipped_updates
        if report.updates:
            self._learned = report
        self._interval.update_seconds += report.seconds.get("update", 0.0)
        self._interval.wait_seconds += report.seconds.get("wait", 0.0)
        self._accounts.take_learning(report)

    def take_evaluation(self, report: EvaluationReport) -> None:
        """One evaluation, of either kind."""
        self._evaluated = fmean(report.returns)
        self.longest_evaluation_seconds = max(self.longest_evaluation_seconds, report.seconds)
        self._accounts.take_evaluation(report)

    def take_restart(self, role: str, cause: RestartCause) -> None:
        """A dead role was replaced."""
        self.restarts += 1
        self._accounts.take_restart(role, cause)

    def take_env_restart(self, cause: EnvRestartCause) -> None:
        """An environment misbehaved and was made anew."""
        self._env_restarts[cause] += 1

    def take_checkpoint(self, checkpointed: Checkpointed) -> None:
        """A checkpoint is complete on disk."""
        self._accounts.take_checkpoint(checkpointed)

    def take_wait(self, seconds: float, of_seconds: float) -> None:
        """Of so many seconds the coordinator waited for completions."""
        self._accounts.take_wait(seconds, of_seconds)

    def interval_seconds(self, now: float) -> float:
        """Seconds since the last snapshot."""
        return now - self._interval.started

    def snapshot(
        self,
        now: float,
        ledger: Ledger,
        pacing: Pacing,
        totals: ShardTotals,
        best: Best | None,
        fleet: FleetMetrics,
        usage: tuple[ProcessUsage, MachineUsage] | None,
    ) -> Snapshot:
        """All figures at `now`; rates and shares are of the time since the last snapshot, and begin anew;
        those of actors are of their newest chunks.

        usage: of the coordinator's process and machine, where it was read.
        """
        interval, seconds = self._interval, max(self.interval_seconds(now), 1e-9)
        self._interval = _Interval(now, self.updates)
        learned, statuses = self._learned, totals.living()
        for actor in self._actors.values():
            actor.look(now)
        snapshot = Snapshot(
            run_seconds=now - self._run_started,
            env_steps_total=totals.env_steps,
            episodes_total=self._episodes,
            inserted_transitions_total=ledger.inserted,
            sampled_transitions_total=ledger.sampled,
            updates_total=self.updates,
            skipped_updates_total=self._skipped_updates,
            restarts_total=self.restarts,
            env_steps_per_second=sum(actor.steps_per_second for actor in self._actors.values()),
            updates_per_second=(self.updates - interval.updates) / seconds,
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
            learner_update_share=interval.update_seconds / seconds,
            learner_wait_share=interval.wait_seconds / seconds,
            actor_busy_share=sum(actor.busy_share for actor in self._actors.values()) / self._num_actors,
            replay_transitions=sum(status.count for status in statuses),
            replay_bytes=sum(status.stored_bytes for status in statuses),
            first_return_mean=fmean(self._first_returns) if self._first_returns else None,
            env_restarts_total={cause: self._env_restarts[cause] for cause in get_args(EnvRestartCause)},
        )
        return self._accounts.complete(
            snapshot,
            now,
            version=self.version,
            best=best,
            totals=totals,
            fleet=fleet,
            usage=usage,
        )
