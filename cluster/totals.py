"""Totals that never go backwards, summed from the statuses that shards send with every reply.

Owns only the sums; imports no engine.
"""

from __future__ import annotations

from collections.abc import Iterable

from replay_service.messages import ShardStatus


class ShardTotals:
    """The newest status of each (shard, incarnation); replies may arrive out of order."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, int], ShardStatus] = {}

    def take(self, statuses: Iterable[ShardStatus]) -> None:
        """Keeps the statuses that are newer than what is held: their counters only grow."""
        for status in statuses:
            key = (status.shard, status.incarnation)
            held = self._newest.get(key)
            if held is None or _age(status) >= _age(held):
                self._newest[key] = status

    @property
    def inserted_rows(self) -> int:
        """Transitions inserted over all shards and incarnations."""
        return sum(status.inserted_rows_total for status in self._newest.values())

    @property
    def env_steps(self) -> int:
        """Environment steps that the inserted blocks account for."""
        return sum(status.env_steps_total for status in self._newest.values())

    def living(self) -> tuple[ShardStatus, ...]:
        """The newest incarnation of each shard, by shard."""
        newest = {shard: self._newest[shard, incarnation] for shard, incarnation in sorted(self._newest)}
        return tuple(newest.values())


def _age(status: ShardStatus) -> tuple[int, int, int]:
    return status.inserted_rows_total, status.sampled_rows_total, status.env_steps_total
