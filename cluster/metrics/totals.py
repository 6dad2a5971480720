"""Totals over shards that never go backwards, from the statuses that shards send with every reply.

Owns only the sums; imports no engine.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from replay_service.histogram import Histogram
from replay_service.messages import ShardMetrics, ShardStatus

_PHASES = ("insert", "sample", "update")


class ShardTotals:
    """The newest status of each (shard, incarnation); replies may arrive out of order."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        """before: the sums of earlier lives."""
        self._before = dict(before or {})
        self._newest: dict[tuple[int, int], ShardStatus] = {}
        self._metrics: dict[tuple[int, int], ShardMetrics] = {}

    def take(self, statuses: Iterable[ShardStatus]) -> None:
        """Keeps the statuses that are newer than those held: their counters only grow."""
        for status in statuses:
            key = (status.shard, status.incarnation)
            held = self._newest.get(key)
            if held is None or _age(status) >= _age(held):
                self._newest[key] = status
            if status.metrics is not None:
                self._metrics[key] = status.metrics

    @property
    def inserted_transitions(self) -> int:
        """Transitions inserted over all shards and incarnations."""
        return self._sum(lambda status: (status.earlier_transitions_total, status.inserted_transitions_total))

    @property
    def env_steps(self) -> int:
        """Environment steps of all inserted blocks."""
        return self._sum(lambda status: (status.earlier_env_steps_total, status.env_steps_total))

    def living(self) -> tuple[ShardStatus, ...]:
        """The newest status of each shard's newest incarnation, by shard."""
        newest = {shard: self._newest[shard, incarnation] for shard, incarnation in sorted(self._newest)}
        return tuple(newest.values())

    def living_metrics(self) -> Mapping[int, ShardMetrics]:
        """Shard -> newest metrics of its newest incarnation that has sent any."""
        return {shard: self._metrics[shard, incarnation] for shard, incarnation in sorted(self._metrics)}

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds over all shards and incarnations."""
        sums = self.sums()
        return {phase: sums[f"{phase}_seconds"] for phase in _PHASES}

    def sums(self) -> dict[str, float]:
        """Name -> sum over all shards, incarnations and lives: metrics *_total, and *_seconds by phase."""
        statuses, metrics = self._newest.values(), self._metrics.values()
        own: dict[str, float] = {
            "pushed_bytes_total": sum(each.inserted_bytes for each in metrics),
            "sampled_bytes_total": sum(each.sampled_bytes for each in metrics),
            "drawn_transitions_total": sum(each.sampled_transitions_total for each in statuses),
            "evicted_transitions_total": sum(each.evicted_transitions_total for each in statuses),
            "late_priorities_total": sum(each.late_priorities_total for each in statuses),
            "repeated_pushes_total": sum(each.repeated_pushes for each in metrics),
            "refused_pushes_total": sum(each.refused_pushes for each in metrics),
            "refused_priorities_total": sum(each.refused_priorities for each in metrics),
            **{f"{phase}_seconds": sum(each.seconds[phase] for each in metrics) for phase in _PHASES},
        }
        return {name: value + self._before.get(name, 0) for name, value in own.items()}

    def metrics(self) -> dict[str, Any]:
        """The metrics of a Snapshot that concern shards; totals are over all incarnations."""
        living, living_metrics = self.living(), self.living_metrics()
        inserted = sum(each.inserted_transitions_total for each in living)
        sampled = sum(each.sampled_transitions_total for each in living)
        priorities = {str(shard): each.priorities for shard, each in living_metrics.items()}
        return {
            "replay_transitions": sum(each.count for each in living),
            "replay_bytes": sum(each.stored_bytes for each in living),
            **{name: value for name, value in self.sums().items() if name.endswith("_total")},
            "sample_age_transitions": sum((each.sample_age for each in self._metrics.values()), Histogram()),
            **self._evicted_draws(),
            "reuse_mean": sampled / inserted if inserted else None,
            "shard_transitions": {str(each.shard): each.count for each in living},
            "shard_capacity_transitions": {
                str(shard): each.capacity for shard, each in living_metrics.items()
            },
            "shard_bytes": {str(each.shard): each.stored_bytes for each in living},
            "shard_mass": {str(each.shard): each.mass for each in living},
            "shard_priority_min": {str(each.shard): each.min_priority for each in living if each.count},
            "shard_priority_max": {shard: each.maximum for shard, each in priorities.items() if each},
            "shard_priority_effective_ratio": {
                shard: each.effective_ratio for shard, each in priorities.items() if each
            },
        }

    def _evicted_draws(self) -> dict[str, Any]:
        """What became of evicted transitions, over all incarnations of this life; empty if there are none."""
        draws = sum((each.evicted_draws for each in self._metrics.values()), Histogram())
        squares = sum(each.evicted_draws_square_sum for each in self._metrics.values())
        if not draws.count:
            return {}
        return {
            "evicted_draws": draws,
            "evicted_undrawn_share": draws.counts[0] / draws.count,
            "evicted_draws_effective_ratio": draws.sum**2 / (draws.count * squares) if squares else None,
        }

    def _sum(self, earlier_and_own: Callable[[ShardStatus], tuple[int, int]]) -> int:
        """Sums over shards: each incarnation adds its own total to that of the incarnations before it.

        For the earlier ones, the journal may have counted more than their last status reported, or less if it
        is off or the disk was full; the greater number counts.
        """
        sums: dict[int, int] = {}
        for shard, incarnation in sorted(self._newest):
            earlier, own = earlier_and_own(self._newest[shard, incarnation])
            sums[shard] = max(sums.get(shard, 0), earlier) + own
        return sum(sums.values())


def _age(status: ShardStatus) -> tuple[int, int, int]:
    return status.inserted_transitions_total, status.sampled_transitions_total, status.env_steps_total
