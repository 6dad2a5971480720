"""What roles report of their work: time by phase, processes, spreads over actors, restarts, checkpoints.

Owns those sums; nothing that it gives out grows with the number of actors. Imports no engine.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import numpy as np

from actors.core import EvaluationReport, RolloutReport
from cluster.control.evaluation import Best
from cluster.metrics.snapshot import ByLabel, Snapshot
from cluster.metrics.totals import ShardTotals
from cluster.metrics.usage import MachineUsage
from learner.core import LearnReport
from replay_service.histogram import Histogram
from replay_service.messages import ProcessUsage

RestartCause = Literal["process", "object", "frozen", "memory"]

_ROLES = ("actor", "shard", "learner", "evaluator")
_CAUSES: tuple[RestartCause, ...] = ("process", "object", "frozen", "memory")
_RECENT_STARTS = 100


@dataclass(frozen=True)
class FleetMetrics:
    """Roles wanted and up, by kind; chunks in flight, by kind; and rows that no shard has confirmed."""

    wanted: Mapping[str, int]
    up: Mapping[str, int]
    credits: Mapping[str, int]
    unacknowledged_transitions: int


@dataclass(frozen=True)
class Checkpointed:
    """The newest checkpoint. at: on the monotonic clock, when it was complete."""

    at: float
    duration_seconds: float
    num_bytes: int


@dataclass(frozen=True)
class _Evaluated:
    """The newest evaluation."""

    version: int
    episodes: int
    return_std: float
    start_value_mean: float | None
    discounted_return_mean: float | None
    start_value_error_std: float | None
    truncation_discount_mean: float | None
    truncated_ratio: float | None
    action_entropy_ratio: float | None


@dataclass(frozen=True)
class _Acting:
    """An actor's newest chunk."""

    policy_lag: int
    steps_per_second: float
    epsilon: float
    pushes_in_flight: int


class Processes:
    """CPU time and memory of roles' processes; a role that is replaced begins a new process."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, int], ProcessUsage] = {}
        self._cpu_seconds: dict[str, float] = collections.defaultdict(float)

    def take(self, role: str, index: int, usage: ProcessUsage | None) -> None:
        """A reading of the role's process, if there was one."""
        if usage is None:
            return
        last = self._newest.get((role, index))
        # A new process counts from 0; it may have passed the old one's figure only if it lived as long.
        same = last is not None and usage.cpu_seconds >= last.cpu_seconds
        self._cpu_seconds[role] += usage.cpu_seconds - (last.cpu_seconds if same and last else 0.0)
        self._newest[role, index] = usage

    def cpu_seconds(self) -> ByLabel:
        """Role -> CPU seconds over all its processes, those of replaced roles included."""
        return dict(self._cpu_seconds)

    def resident_bytes(self) -> ByLabel:
        """Role -> memory over its processes that live."""
        held: collections.Counter[str] = collections.Counter()
        for (role, _), usage in self._newest.items():
            held[role] += usage.resident_bytes
        return dict(held)


class Accounts:
    """Takes every report once, and completes a snapshot with what it has summed.

    Reports are only kept when they come: the coordinator is wanted elsewhere just then, and many at once are
    summed in a tenth of the time.
    """

    def __init__(self, discount: float) -> None:
        self._discount = discount
        self._rollouts: list[tuple[RolloutReport, int]] = []
        self._chunks: list[LearnReport] = []
        self._evaluations: list[EvaluationReport] = []
        self._wait_seconds = self._turn_seconds = 0.0
        self._processes = Processes()
        self._seconds: dict[str, dict[str, float]] = {}
        self._restarts: collections.Counter[tuple[str, RestartCause]] = collections.Counter()
        self._acting: dict[int, _Acting] = {}
        self._start_values: collections.deque[float] = collections.deque(maxlen=_RECENT_STARTS)
        self._action_counts: np.ndarray | None = None
        self._rewards = 0
        self._reward_abs_sum = 0.0
        self._reward_abs_max: float | None = None
        self._learned: LearnReport | None = None
        self._policy_lag = Histogram()
        self._evaluations_total = 0
        self._evaluated: _Evaluated | None = None
        self._machine: MachineUsage | None = None
        self._checkpoints = 0
        self._checkpointed: Checkpointed | None = None

    def take_rollout(self, report: RolloutReport, policy_lag: int) -> None:
        """A chunk of acting."""
        self._rollouts.append((report, policy_lag))

    def take_learning(self, report: LearnReport) -> None:
        """A chunk of updates."""
        self._chunks.append(report)

    def take_evaluation(self, report: EvaluationReport) -> None:
        """One evaluation, of either kind."""
        self._evaluations.append(report)

    def take_restart(self, role: str, cause: RestartCause) -> None:
        """A role was replaced."""
        self._restarts[role, cause] += 1

    def take_checkpoint(self, checkpointed: Checkpointed) -> None:
        """A checkpoint is complete on disk."""
        self._checkpoints += 1
        self._checkpointed = checkpointed

    def take_wait(self, seconds: float, of_seconds: float) -> None:
        """Of so many seconds the coordinator waited for completions."""
        self._wait_seconds += seconds
        self._turn_seconds += of_seconds

    def complete(
        self,
        snapshot: Snapshot,
        now: float,
        *,
        version: int,
        best: Best | None,
        totals: ShardTotals,
        fleet: FleetMetrics,
        usage: tuple[ProcessUsage, MachineUsage] | None,
    ) -> Snapshot:
        """The snapshot with all that is kept here; means over the interval begin anew.

        now: on the monotonic clock; usage: of the coordinator's process and machine, where it was read.
        """
        self._sum_up()
        work, shards, shard_metrics = totals.work(), totals.living(), totals.metrics()
        if usage is not None:
            self._processes.take("coordinator", 0, usage[0])
            self._machine = usage[1]
        machine = self._machine
        for shard, each in shard_metrics.items():
            self._processes.take("shard", shard, each.process)
        learned, evaluated, checkpointed = self._learned, self._evaluated, self._checkpointed
        inserted = sum(status.inserted_transitions_total for status in shards)
        drawn = sum(status.sampled_transitions_total for status in shards)
        priorities = {str(shard): each.priorities for shard, each in shard_metrics.items() if each.priorities}
        coordinator = {"wait": self._wait_seconds, "work": self._turn_seconds - self._wait_seconds}
        seconds = {**self._seconds, "shard": work.seconds, "coordinator": coordinator}
        completed = replace(
            snapshot,
            weights_version=version,
            loss_max=_finite(learned.loss_max) if learned else None,
            q_min=_finite(learned.q_min) if learned else None,
            q_max=_finite(learned.q_max) if learned else None,
            discount=self._discount,
            reward_abs_mean=self._reward_abs_sum / self._rewards if self._rewards else None,
            reward_abs_max=self._reward_abs_max,
            action_entropy_ratio=_entropy_ratio(self._action_counts),
            start_value_mean=fmean(self._start_values) if self._start_values else None,
            evaluations_total=self._evaluations_total,
            evaluation_version=evaluated.version if evaluated else None,
            evaluation_episodes=evaluated.episodes if evaluated else None,
            evaluation_return_std=evaluated.return_std if evaluated else None,
            evaluation_start_value_mean=evaluated.start_value_mean if evaluated else None,
            evaluation_discounted_return_mean=evaluated.discounted_return_mean if evaluated else None,
            evaluation_start_value_error_std=evaluated.start_value_error_std if evaluated else None,
            evaluation_truncation_discount_mean=evaluated.truncation_discount_mean if evaluated else None,
            evaluation_truncated_ratio=evaluated.truncated_ratio if evaluated else None,
            evaluation_action_entropy_ratio=evaluated.action_entropy_ratio if evaluated else None,
            best_version=best.version if best else None,
            best_return_std=best.std if best else None,
            role_seconds_total={role: dict(phases) for role, phases in seconds.items()},
            actor_env_steps_per_second=_spread(each.steps_per_second for each in self._acting.values()),
            credits_in_flight=fleet.credits,
            pushes_in_flight=sum(each.pushes_in_flight for each in self._acting.values()),
            unacknowledged_transitions=fleet.unacknowledged_transitions,
            prefetched_requests=learned.prefetched_requests if learned else None,
            pushed_bytes_total=work.pushed_bytes,
            sampled_bytes_total=work.sampled_bytes,
            sample_policy_lag_updates=self._policy_lag,
            sample_age_transitions=work.sample_age,
            actor_policy_lag_updates=_spread(each.policy_lag for each in self._acting.values()),
            actor_epsilon=_spread(each.epsilon for each in self._acting.values()),
            priority_staleness_mean_updates=_finite(learned.priority_staleness_mean) if learned else None,
            priority_staleness_max_updates=learned.priority_staleness_max if learned else None,
            drawn_transitions_total=work.drawn,
            evicted_transitions_total=work.evicted,
            late_priorities_total=work.late_priorities,
            repeated_pushes_total=work.repeated_pushes,
            reuse_mean=drawn / inserted if inserted else None,
            shard_transitions={str(each.shard): each.count for each in shards},
            shard_capacity_transitions={str(shard): each.capacity for shard, each in shard_metrics.items()},
            shard_bytes={str(each.shard): each.stored_bytes for each in shards},
            shard_mass={str(each.shard): each.mass for each in shards},
            shard_priority_min={str(each.shard): each.min_priority for each in shards if each.count},
            shard_priority_max={shard: each.maximum for shard, each in priorities.items()},
            shard_priority_effective_ratio={
                shard: each.effective_ratio for shard, each in priorities.items()
            },
            roles_wanted=fleet.wanted,
            roles_up=fleet.up,
            role_restarts_total={
                role: {cause: self._restarts[role, cause] for cause in _CAUSES} for role in _ROLES
            },
            process_cpu_seconds_total=self._processes.cpu_seconds(),
            process_resident_memory_bytes=self._processes.resident_bytes(),
            machine_memory_bytes=machine.memory_bytes if machine else None,
            machine_memory_available_bytes=machine.memory_available_bytes if machine else None,
            shared_memory_bytes=machine.shared_memory_bytes if machine else None,
            shared_memory_used_bytes=machine.shared_memory_used_bytes if machine else None,
            checkpoints_total=self._checkpoints,
            checkpoint_age_seconds=now - checkpointed.at if checkpointed else None,
            checkpoint_duration_seconds=checkpointed.duration_seconds if checkpointed else None,
            checkpoint_bytes=checkpointed.num_bytes if checkpointed else None,
        )
        self._action_counts = None
        self._rewards, self._reward_abs_sum = 0, 0.0
        return completed

    def _sum_up(self) -> None:
        """Takes in what was kept since the last snapshot."""
        for rollout, policy_lag in self._rollouts:
            self._sum_rollout(rollout, policy_lag)
        for chunk in self._chunks:
            self._add_seconds("learner", chunk.seconds)
            self._policy_lag += chunk.policy_lag
            if chunk.updates:
                self._learned = chunk
            self._processes.take("learner", 0, chunk.process)
        for evaluation in self._evaluations:
            self._add_seconds("evaluator", {"play": evaluation.seconds, "idle": evaluation.idle_seconds})
            self._processes.take("evaluator", 0, evaluation.process)
        if self._evaluations:
            self._evaluated = _evaluated(self._evaluations[-1], self._discount)
        self._evaluations_total += len(self._evaluations)
        self._rollouts.clear()
        self._chunks.clear()
        self._evaluations.clear()

    def _sum_rollout(self, report: RolloutReport, policy_lag: int) -> None:
        self._add_seconds("actor", report.seconds)
        worked = report.worked_seconds
        self._acting[report.actor] = _Acting(
            policy_lag,
            report.env_steps / worked if worked > 0.0 else 0.0,
            report.epsilon,
            report.pushes_in_flight,
        )
        self._start_values.extend(report.start_values)
        counts = np.array(report.action_counts)
        self._action_counts = counts if self._action_counts is None else self._action_counts + counts
        if report.transitions_pushed:
            self._rewards += report.transitions_pushed
            self._reward_abs_sum += report.reward_abs_sum
            self._reward_abs_max = max(self._reward_abs_max or 0.0, report.reward_abs_max)
        self._processes.take("actor", report.actor, report.process)

    def _add_seconds(self, role: str, seconds: Mapping[str, float]) -> None:
        phases = self._seconds.setdefault(role, dict.fromkeys(seconds, 0.0))
        for phase, spent in seconds.items():
            phases[phase] += spent


def _evaluated(report: EvaluationReport, discount: float) -> _Evaluated:
    errors = [v - g for v, g in zip(report.start_values, report.discounted_returns, strict=True)]
    # What a truncated episode's end was worth stands behind this factor.
    cut = [discount**steps * over for steps, over in zip(report.lengths, report.truncated, strict=False)]
    return _Evaluated(
        version=report.version,
        episodes=len(report.returns),
        return_std=float(np.std(report.returns)),
        start_value_mean=_mean(report.start_values),
        discounted_return_mean=_mean(report.discounted_returns),
        start_value_error_std=float(np.std(errors)) if errors else None,
        truncation_discount_mean=_mean(cut),
        truncated_ratio=_mean(report.truncated),
        action_entropy_ratio=_entropy_ratio(np.array(report.action_counts)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(values: Iterable[float]) -> ByLabel | None:
    """min, mean and max; None of nothing."""
    held = list(values)
    return {"min": min(held), "mean": fmean(held), "max": max(held)} if held else None


def _entropy_ratio(counts: np.ndarray | None) -> float | None:
    """Shannon entropy of the shares of counts [A] over log A; None where there is nothing to choose."""
    if counts is None or len(counts) < 2 or not counts.sum():
        return None
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum() / math.log(len(counts))))
