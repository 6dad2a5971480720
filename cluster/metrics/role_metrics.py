"""Metrics of roles: of their reports since the last snapshot, of the totals over shards, and of processes.

Owns these sums, whose number does not grow with the number of actors. Imports no engine.
"""

import collections
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from actors.core import EvaluationReport, RolloutReport
from cluster.metrics.episodes import mean_of
from cluster.metrics.snapshot import ByLabel
from cluster.metrics.totals import ShardTotals
from cluster.metrics.usage import MachineUsage
from learner.core import LearnReport
from replay_service.histogram import Histogram
from replay_service.messages import ProcessUsage, ShardMetrics

Metrics = dict[str, Any]
"""Name of a Snapshot's metric -> its value; one that is not known yet is None or missing."""


_RECENT_STARTS = 100

_LEARNING_METRICS = {
    "loss": "loss_mean",
    "loss_max": "loss_max",
    "q_mean": "q_mean",
    "q_min": "q_min",
    "q_max": "q_max",
    "td_error_mean": "td_error_mean",
    "grad_norm_mean": "grad_norm_mean",
    "grad_norm_clipped_mean": "grad_norm_clipped_mean",
    "target_gap": "target_gap",
    "learning_rate": "learning_rate",
    "priority_staleness_mean_updates": "priority_staleness_mean",
    "priority_staleness_max_updates": "priority_staleness_max",
    "prefetched_requests": "prefetched_requests",
    "learner_threads": "threads",
}
"""Name of a metric -> the field of LearnReport that it is copied from."""


class Rates:
    """Amounts per second over the chunks that one role has reported since the last look.

    Chunks may take longer than the time between two looks, so a rate holds for twice the time that it was
    measured over.
    """

    def __init__(self) -> None:
        self._amounts: dict[str, float] = {}
        self._seconds = 0.0
        self._rates: dict[str, float] = {}
        self._hold_until = 0.0

    def add(self, seconds: float, amounts: Mapping[str, float]) -> None:
        """Adds a chunk. seconds: since the end of the chunk before."""
        self._seconds += seconds
        add_to(self._amounts, amounts)

    def look(self, now: float) -> Mapping[str, float]:
        """Name -> amount per second. now: on the monotonic clock."""
        if self._seconds > 0.0:
            self._rates = {name: amount / self._seconds for name, amount in self._amounts.items()}
            self._hold_until = now + 2.0 * self._seconds
            self._amounts, self._seconds = {}, 0.0
        elif now > self._hold_until:
            self._rates = {}
        return self._rates


class ActorMetrics:
    """Metrics of acting: rates over all actors, and spreads over the last chunk of each."""

    def __init__(self, num_actors: int) -> None:
        self._num_actors = num_actors
        self._rates: collections.defaultdict[int, Rates] = collections.defaultdict(Rates)
        self._last: dict[int, Metrics] = {}
        self._newest: Metrics = {}
        self._start_values: collections.deque[float] = collections.deque(maxlen=_RECENT_STARTS)
        self._reward_abs_max: float | None = None

    def add(self, rollouts: Sequence[tuple[RolloutReport, int]], now: float) -> Metrics:
        """Adds chunks and returns the metrics at now (monotonic).

        rollouts: each with the learner's newest version when it was reported.
        """
        for report, version in rollouts:
            worked = report.worked_seconds
            self._rates[report.actor].add(
                sum(report.seconds.values()), {"env_steps": report.env_steps, "work": worked}
            )
            self._newest = self._last[report.actor] = {
                "actor_env_steps_per_second": report.env_steps / worked if worked > 0.0 else 0.0,
                "actor_policy_lag_updates": version - report.version,
                "actor_epsilon": report.epsilon,
                "pushes_in_flight": report.pushes_in_flight,
            }
            self._start_values.extend(report.start_values)
        reports = [report for report, _ in rollouts]
        pushed = [report for report in reports if report.transitions_pushed]
        if pushed:
            largest = max(report.reward_abs_max for report in pushed)
            self._reward_abs_max = max(self._reward_abs_max or 0.0, largest)
        rewards = sum(report.transitions_pushed for report in pushed)
        rates, last = [each.look(now) for each in self._rates.values()], self._last.values()
        return {
            "env_steps_per_second": sum(each.get("env_steps", 0.0) for each in rates),
            "actor_busy_share": sum(each.get("work", 0.0) for each in rates) / self._num_actors,
            "epsilon": self._newest.get("actor_epsilon"),
            "policy_lag_updates": self._newest.get("actor_policy_lag_updates"),
            "pushes_in_flight": sum(each["pushes_in_flight"] for each in last),
            "reward_abs_mean": sum(report.reward_abs_sum for report in pushed) / rewards if rewards else None,
            "reward_abs_max": self._reward_abs_max,
            "action_entropy_ratio": _entropy_ratio([report.action_counts for report in reports]),
            "start_value_mean": mean_of(self._start_values),
            **{
                name: _spread(each[name] for each in last)
                for name in ("actor_env_steps_per_second", "actor_policy_lag_updates", "actor_epsilon")
            },
        }


class LearnerMetrics:
    """Metrics of learning: scalars of the newest chunk, shares of time, and the policy lag of all chunks.

    unequal_ranks: chunks after which ranks had unequal weights; counted when they are reported.
    """

    def __init__(self) -> None:
        self.unequal_ranks = 0
        self._scalars: Metrics = {}
        self._rates = Rates()
        self._policy_lag = Histogram()

    def add(self, chunks: Sequence[LearnReport], now: float) -> Metrics:
        """Adds chunks and returns the metrics at now (monotonic).

        A chunk that ended before its first update has no scalars; those of the one before stay.
        """
        for chunk in chunks:
            self._rates.add(sum(chunk.seconds.values()), chunk.seconds)
            self._policy_lag += chunk.policy_lag
            if chunk.updates:
                self._scalars = {name: getattr(chunk, source) for name, source in _LEARNING_METRICS.items()}
        shares = self._rates.look(now)
        return {
            **{name: _known(value) for name, value in self._scalars.items()},
            "learner_update_share": shares.get("update", 0.0),
            "learner_wait_share": shares.get("wait", 0.0),
            "sample_policy_lag_updates": self._policy_lag,
            "unequal_ranks_total": self.unequal_ranks,
        }


class EvaluationMetrics:
    """Metrics of the newest evaluation. discount: gamma. evaluations: how many there were."""

    def __init__(self, discount: float) -> None:
        self._discount = discount
        self.evaluations = 0
        self._newest: Metrics = {}

    def add(self, evaluations: Sequence[EvaluationReport]) -> Metrics:
        """Adds evaluations, first and second ones of a version alike, and returns the metrics."""
        self.evaluations += len(evaluations)
        if evaluations:
            newest = evaluations[-1]
            errors = [v - g for v, g in zip(newest.start_values, newest.discounted_returns, strict=True)]
            # The return that a truncated episode lacks would have been discounted by this factor.
            factors = [
                self._discount**length * truncated
                for length, truncated in zip(newest.lengths, newest.truncated, strict=False)
            ]
            self._newest = {
                "evaluation_version": newest.version,
                "evaluation_episodes": len(newest.returns),
                "evaluation_return_std": float(np.std(newest.returns)),
                "evaluation_start_value_mean": mean_of(newest.start_values),
                "evaluation_discounted_return_mean": mean_of(newest.discounted_returns),
                "evaluation_start_value_error_std": float(np.std(errors)) if errors else None,
                "evaluation_truncation_discount_mean": mean_of(factors),
                "evaluation_truncated_ratio": mean_of(newest.truncated),
                "evaluation_action_entropy_ratio": _entropy_ratio([newest.action_counts]),
            }
        return {"discount": self._discount, "evaluations_total": self.evaluations, **self._newest}


class ProcessMetrics:
    """Time by phase, CPU time and memory of roles' processes, and memory of the coordinator's machine.

    Attributes:
        seconds: role -> phase -> seconds.
        machine: the newest reading of the coordinator's machine.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {
            **{role: {} for role in ("actor", "learner", "evaluator", "shard")},
            "coordinator": {"wait": 0.0, "work": 0.0},
        }
        self.machine: MachineUsage | None = None
        self._newest: dict[tuple[str, int], ProcessUsage] = {}
        self._cpu_seconds: dict[str, float] = {}

    def add(
        self, role: str, index: int, usage: ProcessUsage | None, seconds: Mapping[str, float] | None = None
    ) -> None:
        """Adds the time of a chunk, and a reading of the role's process if there is one.

        A role that was replaced has a new process.
        """
        add_to(self.seconds[role], seconds or {})
        if usage is None:
            return
        last = self._newest.get((role, index))
        # A new process counts from 0. It is mistaken for the old one only if it has used as much already.
        before = last.cpu_seconds if last is not None and usage.cpu_seconds >= last.cpu_seconds else 0.0
        add_to(self._cpu_seconds, {role: usage.cpu_seconds - before})
        self._newest[role, index] = usage

    def metrics(self) -> Metrics:
        """Seconds over all processes of a role, replaced ones too; memory over the newest process of each."""
        resident: collections.Counter[str] = collections.Counter()
        for (role, _), usage in self._newest.items():
            resident[role] += usage.resident_bytes
        return {
            "role_seconds_total": {role: dict(phases) for role, phases in self.seconds.items() if phases},
            "process_cpu_seconds_total": dict(self._cpu_seconds),
            "process_resident_memory_bytes": dict(resident),
            **(vars(self.machine) if self.machine else {}),
        }


def metrics_of_shards(totals: ShardTotals) -> Metrics:
    """The metrics that concern shards; totals are over all incarnations."""
    living, living_metrics = totals.living(), totals.living_metrics()
    inserted = sum(each.inserted_transitions_total for each in living)
    sampled = sum(each.sampled_transitions_total for each in living)
    priorities = {str(shard): each.priorities for shard, each in living_metrics.items()}
    return {
        "replay_transitions": sum(each.count for each in living),
        "replay_bytes": sum(each.stored_bytes for each in living),
        **{name: value for name, value in totals.sums().items() if name.endswith("_total")},
        "sample_age_transitions": sum(
            (each.sample_age for each in totals.newest_metrics.values()), Histogram()
        ),
        **_evicted_draws(totals.newest_metrics.values()),
        "reuse_mean": sampled / inserted if inserted else None,
        "shard_transitions": {str(each.shard): each.count for each in living},
        "shard_capacity_transitions": {str(shard): each.capacity for shard, each in living_metrics.items()},
        "shard_bytes": {str(each.shard): each.stored_bytes for each in living},
        "shard_mass": {str(each.shard): each.mass for each in living},
        "shard_priority_min": {str(each.shard): each.min_priority for each in living if each.count},
        "shard_priority_max": {shard: each.maximum for shard, each in priorities.items() if each},
        "shard_priority_effective_ratio": {
            shard: each.effective_ratio for shard, each in priorities.items() if each
        },
    }


def _evicted_draws(metrics: Collection[ShardMetrics]) -> Metrics:
    """What became of evicted transitions, over all incarnations of this life; empty if there are none."""
    draws = sum((each.evicted_draws for each in metrics), Histogram())
    squares = sum(each.evicted_draws_square_sum for each in metrics)
    if not draws.count:
        return {}
    return {
        "evicted_draws": draws,
        "evicted_undrawn_share": draws.counts[0] / draws.count,
        "evicted_draws_effective_ratio": draws.sum**2 / (draws.count * squares) if squares else None,
    }


def add_to(sums: dict[str, float], amounts: Mapping[str, float]) -> None:
    """Adds amounts to sums of the same names, in place."""
    for name, amount in amounts.items():
        sums[name] = sums.get(name, 0.0) + amount


def _known(value: float | None) -> float | None:
    """The value; None for NaN, which is the mean of no values."""
    return None if value is None or math.isnan(value) else value


def _spread(values: Iterable[float]) -> ByLabel | None:
    """Minimum, mean and maximum; None if there are no values."""
    held = list(values)
    return {"min": min(held), "mean": fmean(held), "max": max(held)} if held else None


def _entropy_ratio(counts: Sequence[Sequence[int]]) -> float | None:
    """Shannon entropy of the shares of summed counts [N, A] over log A; None for A < 2 or without any."""
    summed = np.sum(counts, axis=0) if counts else np.zeros(0)
    if len(summed) < 2 or not summed.sum():
        return None
    shares = summed[summed > 0] / summed.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum() / math.log(len(summed))))
