"""Totals over shards that never go backwards, from the statuses that shards send with every reply.

Owns only the sums; imports no engine.
"""

from collections.abc import Callable, Iterable, Mapping

from replay_service.messages import ShardMetrics, ShardStatus

_PHASES = ("insert", "sample", "update")


class ShardTotals:
    """The newest status of each (shard, incarnation); replies may arrive out of order.

    newest_metrics: (shard, incarnation) -> its newest metrics.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        """before: the sums of earlier lives."""
        self._before = dict(before or {})
        self._newest: dict[tuple[int, int], ShardStatus] = {}
        self.newest_metrics: dict[tuple[int, int], ShardMetrics] = {}

    def take(self, statuses: Iterable[ShardStatus]) -> None:
        """Keeps the statuses that are newer than those held: their counters only grow."""
        for status in statuses:
            key = (status.shard, status.incarnation)
            held = self._newest.get(key)
            if held is None or _age(status) >= _age(held):
                self._newest[key] = status
            if status.metrics is not None:
                self.newest_metrics[key] = status.metrics

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
        return {
            shard: self.newest_metrics[shard, incarnation]
            for shard, incarnation in sorted(self.newest_metrics)
        }

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds over all shards and incarnations."""
        sums = self.sums()
        return {phase: sums[f"{phase}_seconds"] for phase in _PHASES}

    def sums(self) -> dict[str, float]:
        """Name -> sum over all shards, incarnations and lives: metrics *_total, and *_seconds by phase."""
        statuses, metrics = self._newest.values(), self.newest_metrics.values()
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
