"""Metrics of actors, learner, evaluator and processes, summed from their reports.

Owns those sums; nothing that they give out grows with the number of actors. Imports no engine.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from actors.core import EvaluationReport, RolloutReport
from cluster.metrics.snapshot import ByLabel
from cluster.metrics.usage import MachineUsage
from learner.core import LearnReport
from replay_service.histogram import Histogram
from replay_service.messages import ProcessUsage

Metrics = dict[str, Any]
"""Name of a Snapshot's metric -> its value; what is not known yet is None or missing."""

_RECENT_EPISODES = 100
_FEWEST_FIRST_EPISODES = 10

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
}
"""Name of a metric -> field of LearnReport that it is copied from."""


class Rates:
    """Amounts per second over the chunks that one role has reported since the last look.

    Chunks may take longer than the time between two looks: a rate holds for twice as long as it was measured
    over.
    """

    def __init__(self) -> None:
        self._amounts: dict[str, float] = {}
        self._seconds = 0.0
        self._rates: dict[str, float] = {}
        self._hold_until = 0.0

    def add(self, seconds: float, amounts: Mapping[str, float]) -> None:
        """Adds a chunk that took so long, from the end of the one before."""
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
    """Metrics of acting: the rates of each actor, recent episodes, and spreads over actors."""

    def __init__(self, num_actors: int) -> None:
        self.seconds: dict[str, float] = {}
        self.episodes = 0
        self.returns: collections.deque[float] = collections.deque(maxlen=_RECENT_EPISODES)
        self.lengths: collections.deque[int] = collections.deque(maxlen=_RECENT_EPISODES)
        self.first_returns: tuple[float, ...] = ()
        self._num_actors = num_actors
        self._rates: collections.defaultdict[int, Rates] = collections.defaultdict(Rates)
        self._last: dict[int, Metrics] = {}
        self._epsilon: float | None = None
        self._policy_lag: int | None = None
        self._start_values: collections.deque[float] = collections.deque(maxlen=_RECENT_EPISODES)
        self._action_counts: np.ndarray | None = None
        self._rewards = 0
        self._reward_abs_sum = 0.0
        self._reward_abs_max: float | None = None

    def resume(
        self, episodes: int, returns: tuple[float, ...], lengths: tuple[int, ...], first: tuple[float, ...]
    ) -> None:
        """Goes on from the episodes that a checkpoint knows, instead of those counted here."""
        self.episodes, self.first_returns = episodes, first
        self.returns = collections.deque(returns, _RECENT_EPISODES)
        self.lengths = collections.deque(lengths, _RECENT_EPISODES)

    def add(self, report: RolloutReport, version: int) -> None:
        """Adds a chunk of acting. version: the learner's newest when the report came."""
        worked = report.worked_seconds
        self._rates[report.actor].add(
            sum(report.seconds.values()), {"env_steps": report.env_steps, "work": worked}
        )
        add_to(self.seconds, report.seconds)
        self._epsilon, self._policy_lag = report.epsilon, version - report.version
        self._last[report.actor] = {
            "actor_env_steps_per_second": report.env_steps / worked if worked > 0.0 else 0.0,
            "actor_policy_lag_updates": self._policy_lag,
            "actor_epsilon": report.epsilon,
            "pushes_in_flight": report.pushes_in_flight,
        }
        self.episodes += len(report.episode_returns)
        self.returns.extend(report.episode_returns)
        self.lengths.extend(report.episode_lengths)
        # From before learning began; some at least, where episodes take longer than that.
        if len(self.first_returns) < (_RECENT_EPISODES if version == 0 else _FEWEST_FIRST_EPISODES):
            self.first_returns = (*self.first_returns, *report.episode_returns)[:_RECENT_EPISODES]
        self._start_values.extend(report.start_values)
        counts = np.array(report.action_counts)
        self._action_counts = counts if self._action_counts is None else self._action_counts + counts
        if report.transitions_pushed:
            self._rewards += report.transitions_pushed
            self._reward_abs_sum += report.reward_abs_sum
            self._reward_abs_max = max(self._reward_abs_max or 0.0, report.reward_abs_max)

    def metrics(self, now: float) -> Metrics:
        """The metrics of acting; those since the last snapshot begin anew. now: on the monotonic clock."""
        rates = [each.look(now) for each in self._rates.values()]
        last = self._last.values()
        metrics = {
            "episodes_total": self.episodes,
            "env_steps_per_second": sum(each.get("env_steps", 0.0) for each in rates),
            "epsilon": self._epsilon,
            "train_return_mean": _mean(self.returns),
            "train_length_mean": _mean(self.lengths),
            "policy_lag_updates": self._policy_lag,
            "actor_busy_share": sum(each.get("work", 0.0) for each in rates) / self._num_actors,
            "reward_abs_mean": self._reward_abs_sum / self._rewards if self._rewards else None,
            "reward_abs_max": self._reward_abs_max,
            "action_entropy_ratio": _entropy_ratio(self._action_counts),
            "start_value_mean": _mean(self._start_values),
            "first_return_mean": _mean(self.first_returns),
            "pushes_in_flight": sum(each["pushes_in_flight"] for each in last),
            **{
                name: _spread(each[name] for each in last)
                for name in ("actor_env_steps_per_second", "actor_policy_lag_updates", "actor_epsilon")
            },
        }
        self._action_counts = None
        self._rewards, self._reward_abs_sum = 0, 0.0
        return metrics


class LearnerMetrics:
    """Metrics of learning: scalars of the newest chunk, shares of time, and the policy lag of all chunks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.skipped_updates = 0
        self._scalars: Metrics = {}
        self._rates = Rates()
        self._policy_lag = Histogram()

    def add(self, report: LearnReport) -> None:
        """Adds a chunk of updates; one that ended before its first update has no scalars to show."""
        add_to(self.seconds, report.seconds)
        self._rates.add(sum(report.seconds.values()), report.seconds)
        self._policy_lag += report.policy_lag
        self.skipped_updates += report.skipped_updates
        if report.updates:
            self._scalars = {
                name: _known(getattr(report, source)) for name, source in _LEARNING_METRICS.items()
            }

    def metrics(self, now: float) -> Metrics:
        """The metrics of learning. now: on the monotonic clock."""
        shares = self._rates.look(now)
        return {
            **self._scalars,
            "skipped_updates_total": self.skipped_updates,
            "learner_update_share": shares.get("update", 0.0),
            "learner_wait_share": shares.get("wait", 0.0),
            "sample_policy_lag_updates": self._policy_lag,
        }


class EvaluationMetrics:
    """Metrics of the newest evaluation. discount: gamma."""

    def __init__(self, discount: float) -> None:
        self.seconds: dict[str, float] = {}
        self.return_mean: float | None = None
        self._discount = discount
        self._evaluations = 0
        self._newest: Metrics = {}

    def add(self, report: EvaluationReport) -> None:
        """Adds an evaluation, whether it is a version's first or second."""
        add_to(self.seconds, {"play": report.seconds, "idle": report.idle_seconds})
        self._evaluations += 1
        self.return_mean = fmean(report.returns)
        errors = [v - g for v, g in zip(report.start_values, report.discounted_returns, strict=True)]
        # The return that a truncated episode lacks would have been discounted by this factor.
        factors = [
            self._discount**n * ended for n, ended in zip(report.lengths, report.truncated, strict=False)
        ]
        self._newest = {
            "evaluation_version": report.version,
            "evaluation_episodes": len(report.returns),
            "evaluation_return_std": float(np.std(report.returns)),
            "evaluation_start_value_mean": _mean(report.start_values),
            "evaluation_discounted_return_mean": _mean(report.discounted_returns),
            "evaluation_start_value_error_std": float(np.std(errors)) if errors else None,
            "evaluation_truncation_discount_mean": _mean(factors),
            "evaluation_truncated_ratio": _mean(report.truncated),
            "evaluation_action_entropy_ratio": _entropy_ratio(np.array(report.action_counts)),
        }

    def metrics(self) -> Metrics:
        """The metrics of evaluations."""
        return {
            "evaluations_total": self._evaluations,
            "evaluation_return_mean": self.return_mean,
            **self._newest,
        }


class ProcessMetrics:
    """CPU time and memory of roles' processes, and memory of the coordinator's machine.

    A role that is replaced gets a new process.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[str, int], ProcessUsage] = {}
        self._cpu_seconds: dict[str, float] = {}
        self._machine: Metrics = {}

    def add(self, role: str, index: int, usage: ProcessUsage | None) -> None:
        """Adds a reading of a role's process; None: it was not read."""
        if usage is None:
            return
        last = self._newest.get((role, index))
        # A new process counts from 0. It is taken for the old one only if it has used as much already.
        before = last.cpu_seconds if last is not None and usage.cpu_seconds >= last.cpu_seconds else 0.0
        add_to(self._cpu_seconds, {role: usage.cpu_seconds - before})
        self._newest[role, index] = usage

    def add_machine(self, usage: MachineUsage) -> None:
        """Adds a reading of the coordinator's machine."""
        self._machine = {
            "machine_memory_bytes": usage.memory_bytes,
            "machine_memory_available_bytes": usage.memory_available_bytes,
            "shared_memory_bytes": usage.shared_memory_bytes,
            "shared_memory_used_bytes": usage.shared_memory_used_bytes,
        }

    def metrics(self) -> Metrics:
        """CPU seconds over all processes of a role, replaced ones too; memory over the newest of each."""
        resident: collections.Counter[str] = collections.Counter()
        for (role, _), usage in self._newest.items():
            resident[role] += usage.resident_bytes
        return {
            "process_cpu_seconds_total": dict(self._cpu_seconds),
            "process_resident_memory_bytes": dict(resident),
            **self._machine,
        }


def add_to(sums: dict[str, float], amounts: Mapping[str, float]) -> None:
    """Adds amounts to sums of the same names, in place."""
    for name, amount in amounts.items():
        sums[name] = sums.get(name, 0.0) + amount


def _known(value: float | None) -> float | None:
    """None for NaN, the mean of nothing."""
    return None if value is None or math.isnan(value) else value


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(values: Iterable[float]) -> ByLabel | None:
    """Minimum, mean and maximum; None of no values."""
    held = list(values)
    return {"min": min(held), "mean": fmean(held), "max": max(held)} if held else None


def _entropy_ratio(counts: np.ndarray | None) -> float | None:
    """Shannon entropy of the shares of counts [A] over log A; None if A < 2 or nothing was counted."""
    if counts is None or len(counts) < 2 or not counts.sum():
        return None
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum() / math.log(len(counts))))
