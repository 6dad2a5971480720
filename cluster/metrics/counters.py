"""The counters of a run: every report is taken once, and every number is kept in one place.

Owns the counters, the part of them that checkpoints keep, and their snapshot. Imports no engine.
"""

import collections
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal, get_args

from actors.core import EnvRestartCause, EvaluationReport, RolloutReport
from cluster.control.ends import ActingClock
from cluster.control.evaluation import Best
from cluster.control.pacing import Ledger, Pacing, PacingOrigin
from cluster.metrics.episodes import Episodes
from cluster.metrics.role_metrics import (
    ActorMetrics,
    EvaluationMetrics,
    LearnerMetrics,
    ProcessMetrics,
    metrics_of_shards,
)
from cluster.metrics.snapshot import Snapshot
from cluster.metrics.totals import ShardTotals
from cluster.metrics.usage import MachineUsage
from cluster.settings.resolved import ResolvedConfig
from learner.core import LearnReport
from replay_service.messages import ProcessUsage

RestartCause = Literal["process", "object", "frozen", "memory"]

_ROLES = ("actor", "shard", "learner", "evaluator")


@dataclass(frozen=True)
class CountersState:
    """The counters that a checkpoint keeps. version: the learner's newest.

    updates counts every update applied, including those lost with a learner; sampled_transitions counts the
    transitions that they consumed. shard_sums: see ShardTotals.sums. acting_seconds: see ActingClock.
    """

    version: int = 0
    updates: int = 0
    sampled_transitions: int = 0
    skipped_updates: int = 0
    unequal_ranks: int = 0
    restarts: int = 0
    episodes: int = 0
    returns: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    first_returns: tuple[float, ...] = ()
    evaluation_return_mean: float | None = None
    env_restarts: Mapping[EnvRestartCause, int] = field(default_factory=dict)
    role_restarts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    evaluations: int = 0
    checkpoints: int = 0
    shard_sums: Mapping[str, float] = field(default_factory=dict)
    pacing_origin: PacingOrigin = field(default_factory=PacingOrigin)
    acting_seconds: float = 0.0


@dataclass(frozen=True)
class FleetMetrics:
    """Roles wanted and up, by kind; chunks in flight, by kind; transitions that no shard has acknowledged."""

    wanted: Mapping[str, int]
    up: Mapping[str, int]
    credits: Mapping[str, int]
    unacknowledged_transitions: int


@dataclass(frozen=True)
class CheckpointMetrics:
    """The newest checkpoint. at: when it was complete, on the monotonic clock."""

    at: float
    duration_seconds: float
    num_bytes: int


class Counters:
    """Takes every report of a run once, and makes snapshots.

    A report is mostly just stored when it arrives, and summed for the next snapshot: summing many at once
    takes the coordinator a tenth of the time. In the serial runtime, one Counters stays in use when a run
    resumes in the same process.

    Attributes:
        shards: the totals over shards.
        version: the learner's newest, as of the last report.
        updates: updates applied, including those lost with a learner, so it may exceed `version`.
        sampled_transitions: transitions consumed by those updates.
        restarts: roles replaced.
        pacing_origin: from where on pacing counts.
        clock: that of stop.seconds.
    """

    def __init__(self, *, started: float, discount: float, num_actors: int) -> None:
        """started: when the run began, on the monotonic clock; discount: gamma."""
        self.shards = ShardTotals()
        self.version = self.updates = self.sampled_transitions = self.restarts = 0
        self.pacing_origin = PacingOrigin()
        self.clock = ActingClock()
        self._skipped_updates = 0
        self._evaluation_return_mean: float | None = None
        self._episodes = Episodes()
        self._started = started
        # When the interval of the next snapshot's rates began, and the updates until then.
        self._interval = (started, 0)
        self._rollouts: list[tuple[RolloutReport, int]] = []
        self._chunks: list[LearnReport] = []
        self._evaluations: list[EvaluationReport] = []
        self._actors = ActorMetrics(num_actors)
        self._learner = LearnerMetrics()
        self._evaluation = EvaluationMetrics(discount)
        self._processes = ProcessMetrics()
        self._role_restarts: collections.Counter[tuple[str, RestartCause]] = collections.Counter()
        self._env_restarts: collections.Counter[EnvRestartCause] = collections.Counter()
        self._saved: tuple[int, CheckpointMetrics | None] = (0, None)  # how many checkpoints, the newest

    def resume(self, state: CountersState) -> None:
        """Continues from a checkpoint's counters; the shards' totals begin at zero.

        Counters that a checkpoint does not keep continue as they are in this process.
        """
        self.shards = ShardTotals(state.shard_sums)
        self.pacing_origin = state.pacing_origin
        self._saved = (state.checkpoints, self._saved[1])
        self._evaluation.evaluations = state.evaluations - len(self._evaluations)
        self._role_restarts = collections.Counter(
            {
                (role, cause): state.role_restarts.get(role, {}).get(cause, 0)
                for role in _ROLES
                for cause in get_args(RestartCause)
            }
        )
        self.version, self.updates = state.version, state.updates
        self.sampled_transitions, self.restarts = state.sampled_transitions, state.restarts
        self._skipped_updates = state.skipped_updates
        self._learner.unequal_ranks = state.unequal_ranks
        self._evaluation_return_mean = state.evaluation_return_mean
        self._episodes = Episodes(state.episodes, state.returns, state.lengths, state.first_returns)
        self._env_restarts = collections.Counter(state.env_restarts)
        self.clock.resume(state.acting_seconds)

    def state(self) -> CountersState:
        """The counters for a checkpoint."""
        return CountersState(
            version=self.version,
            updates=self.updates,
            sampled_transitions=self.sampled_transitions,
            skipped_updates=self._skipped_updates,
            unequal_ranks=self._learner.unequal_ranks,
            restarts=self.restarts,
            episodes=self._episodes.finished,
            returns=self._episodes.returns,
            lengths=self._episodes.lengths,
            first_returns=self._episodes.first_returns,
            evaluation_return_mean=self._evaluation_return_mean,
            env_restarts=dict(self._env_restarts),
            role_restarts=self._restarts_by_role(),
            evaluations=self._evaluation.evaluations + len(self._evaluations),
            checkpoints=self._saved[0],
            shard_sums=self.shards.sums(),
            pacing_origin=self.pacing_origin,
            acting_seconds=self.clock.seconds(time.monotonic()),
        )

    @property
    def env_restarts(self) -> int:
        """Environments restarted since the run began, whatever the cause."""
        return self._env_restarts.total()

    def begin_interval(self, now: float) -> None:
        """Begins the interval of the next snapshot's rates. now: on the monotonic clock."""
        self._interval = (now, self.updates)

    def interval_seconds(self, now: float) -> float:
        """Seconds since the interval began; each snapshot begins another."""
        return now - self._interval[0]

    def take_rollout(self, report: RolloutReport) -> None:
        """Takes a chunk of acting, with its statuses of shards."""
        self.shards.take(report.statuses)
        self._episodes.add(report, self.version)
        self._rollouts.append((report, self.version))

    def take_learning(self, report: LearnReport, batch_size: int) -> None:
        """Takes a chunk of updates, with its statuses of shards."""
        self.shards.take(report.statuses)
        seconds = sum(report.seconds.values()) - report.seconds.get("idle", 0.0)
        self.clock.longest_chunk_seconds = max(self.clock.longest_chunk_seconds, seconds)
        self.version = report.version
        self.updates += report.updates
        self.sampled_transitions += report.updates * batch_size
        self._skipped_updates += report.skipped_updates
        self._learner.unequal_ranks += report.unequal_weights
        self._chunks.append(report)

    def take_rank(self, report: LearnReport) -> None:
        """Takes the report of another rank of the learner on the same chunk, for its process only."""
        self._processes.add("learner", report.rank, report.process)

    def take_evaluation(self, report: EvaluationReport) -> None:
        """Takes an evaluation, whether it is a version's first or second."""
        self.clock.longest_evaluation_seconds = max(self.clock.longest_evaluation_seconds, report.seconds)
        self._evaluation_return_mean = fmean(report.returns)
        self._evaluations.append(report)

    def take_restart(self, role: str, cause: RestartCause) -> None:
        """Counts a role that was replaced."""
        self.restarts += 1
        self._role_restarts[role, cause] += 1

    def take_env_restart(self, cause: EnvRestartCause) -> None:
        """Counts an environment that was restarted because it misbehaved."""
        self._env_restarts[cause] += 1

    def take_checkpoint(self, saved: CheckpointMetrics) -> None:
        """Counts a checkpoint that is complete on disk."""
        self._saved = (self._saved[0] + 1, saved)

    def take_wait(self, seconds: float, of_seconds: float) -> None:
        """Counts of_seconds of the coordinator's time, in which it waited for completions for `seconds`."""
        spent = self._processes.seconds["coordinator"]
        spent["wait"] += seconds
        spent["work"] += of_seconds - seconds

    def snapshot(
        self,
        now: float,
        *,
        ledger: Ledger,
        pacing: Pacing,
        best: Best | None,
        fleet: FleetMetrics,
        usage: tuple[ProcessUsage, MachineUsage] | None,
        config: ResolvedConfig,
    ) -> Snapshot:
        """All metrics at `now`, on the monotonic clock; begins a new interval.

        usage: a new reading of the coordinator's process and machine; None if there is none.
        """
        self._sum_processes(usage)
        checkpoints, saved = self._saved
        shards, episodes = metrics_of_shards(self.shards), self._episodes.metrics()
        samples_per_insert = pacing.achieved(ledger)
        per_lane = shards["replay_transitions"] / config.lanes
        episode_steps = episodes["train_length_mean"]
        snapshot = Snapshot(
            lane_transitions=per_lane,
            lane_episodes=per_lane / episode_steps if episode_steps else None,
            target_age_env_steps=config.samples_per_copy / samples_per_insert if samples_per_insert else None,
            run_seconds=now - self._started,
            acting_seconds=self.clock.seconds(now),
            env_steps_total=self.shards.env_steps,
            inserted_transitions_total=ledger.inserted,
            sampled_transitions_total=ledger.sampled,
            updates_total=self.updates,
            skipped_updates_total=self._skipped_updates,
            restarts_total=self.restarts,
            updates_per_second=(self.updates - self._interval[1]) / max(self.interval_seconds(now), 1e-9),
            samples_per_insert=samples_per_insert,
            samples_per_insert_target=pacing.samples_per_insert,
            evaluation_return_mean=self._evaluation_return_mean,
            best_return_mean=best.score if best else None,
            weights_version=self.version,
            best_version=best.version if best else None,
            best_return_std=best.std if best else None,
            credits_in_flight=fleet.credits,
            unacknowledged_transitions=fleet.unacknowledged_transitions,
            roles_wanted=fleet.wanted,
            roles_up=fleet.up,
            role_restarts_total=self._restarts_by_role(),
            env_restarts_total={cause: self._env_restarts[cause] for cause in get_args(EnvRestartCause)},
            checkpoints_total=checkpoints,
            checkpoint_age_seconds=now - saved.at if saved else None,
            checkpoint_duration_seconds=saved.duration_seconds if saved else None,
            checkpoint_bytes=saved.num_bytes if saved else None,
            **episodes,
            **self._actors.add(self._rollouts, now),
            **self._learner.add(self._chunks, now),
            **self._evaluation.add(self._evaluations),
            **shards,
            **self._processes.metrics(),
        )
        self._rollouts, self._chunks, self._evaluations = [], [], []
        self.begin_interval(now)
        return snapshot

    def _restarts_by_role(self) -> dict[str, dict[str, int]]:
        return {
            role: {cause: self._role_restarts[role, cause] for cause in get_args(RestartCause)}
            for role in _ROLES
        }

    def _sum_processes(self, usage: tuple[ProcessUsage, MachineUsage] | None) -> None:
        """Adds times and process usage from the reports since the last snapshot, and from shards."""
        processes = self._processes
        for rollout, _ in self._rollouts:
            processes.add("actor", rollout.actor, rollout.process, rollout.seconds)
        for chunk in self._chunks:
            processes.add("learner", 0, chunk.process, chunk.seconds)
        for each in self._evaluations:
            processes.add("evaluator", 0, each.process, {"play": each.seconds, "idle": each.idle_seconds})
        for shard, metrics in self.shards.living_metrics().items():
            processes.add("shard", shard, metrics.process)
        processes.seconds["shard"] = self.shards.seconds()
        if usage is not None:
            processes.add("coordinator", 0, usage[0])
            processes.machine = usage[1]
