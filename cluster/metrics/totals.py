"""Totals that never go backwards, summed from the statuses that shards send with every reply.

Owns only the sums; imports no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from replay_service.histogram import Histogram
from replay_service.messages import ShardMetrics, ShardStatus


@dataclass(frozen=True)
class ShardWork:
    """What shards did since the run began: rows, bytes, and seconds by phase."""

    drawn: int
    evicted: int
    late_priorities: int
    repeated_pushes: int
    pushed_bytes: int
    sampled_bytes: int
    seconds: Mapping[str, float]
    sample_age: Histogram


class ShardTotals:
    """The newest status of each (shard, incarnation); replies may arrive out of order."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, int], ShardStatus] = {}
        self._metrics: dict[tuple[int, int], ShardMetrics] = {}

    def take(self, statuses: Iterable[ShardStatus]) -> None:
        """Keeps the statuses that are newer than what is held: their counters only grow."""
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
        """Environment steps that the inserted blocks account for."""
        return self._sum(lambda status: (status.earlier_env_steps_total, status.env_steps_total))

    def work(self) -> ShardWork:
        """What all incarnations did, by the newest metrics of each."""
        statuses, metrics = self._newest.values(), self._metrics.values()
        return ShardWork(
            drawn=sum(status.sampled_transitions_total for status in statuses),
            evicted=sum(status.evicted_transitions_total for status in statuses),
            late_priorities=sum(status.late_priorities_total for status in statuses),
            repeated_pushes=sum(each.repeated_pushes for each in metrics),
            pushed_bytes=sum(each.inserted_bytes for each in metrics),
            sampled_bytes=sum(each.sampled_bytes for each in metrics),
            seconds={
                phase: sum(each.seconds[phase] for each in metrics)
                for phase in ("insert", "sample", "update")
            },
            sample_age=sum((each.sample_age for each in metrics), Histogram()),
        )

    def metrics(self) -> dict[int, ShardMetrics]:
        """The newest of each shard's newest incarnation that has said any."""
        return {shard: self._metrics[shard, incarnation] for shard, incarnation in sorted(self._metrics)}

    def living(self) -> tuple[ShardStatus, ...]:
        """The newest incarnation of each shard, by shard."""
        newest = {shard: self._newest[shard, incarnation] for shard, incarnation in sorted(self._newest)}
        return tuple(newest.values())

    def _sum(self, earlier_and_own: Callable[[ShardStatus], tuple[int, int]]) -> int:
        """Over incarnations of a shard, each adds its own total to what the ones before it are known to have.

        A journal knows more of them than their last status said, and less where there is none or a disk was
        full: the greater of both is what counts.
        """
        sums: dict[int, int] = {}
        for shard, incarnation in sorted(self._newest):
            earlier, own = earlier_and_own(self._newest[shard, incarnation])
            sums[shard] = max(sums.get(shard, 0), earlier) + own
        return sum(sums.values())


def _age(status: ShardStatus) -> tuple[int, int, int]:
    return status.inserted_transitions_total, status.sampled_transitions_total, status.env_steps_total
