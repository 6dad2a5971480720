"""Shards of this process, called directly."""

from __future__ import annotations

from collections.abc import Sequence

from replay_service.messages import PriorityUpdate, SampleReply, SampleRequest, ShardStatus
from replay_service.shard import ReplayShard


class LocalTransport:
    """A ShardTransport whose tickets are the replies themselves."""

    def __init__(self, shards: Sequence[ReplayShard]) -> None:
        self.shards = list(shards)

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
        return self.shards[shard].exchange(update, request)

    def collect(self, ticket: SampleReply) -> SampleReply:
        return ticket

    def status(self, shard: int) -> ShardStatus:
        return self.shards[shard].status()
