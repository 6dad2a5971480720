"""The shard's role: one replay shard in a process of its own.

Owns wiring only; must not import torch, gymnasium or ray.
"""

from pathlib import Path

import numpy as np

from cluster.runtime.role import Role, RoleContext, Seeds
from replay_service.journal.durability import SealReply
from replay_service.journal.recovery import RecoveryReport
from replay_service.messages import InsertReply, PriorityUpdate, SampleReply, SampleRequest, ShardStatus
from replay_service.shard import ReplayShard


class ShardRole(Role):
    """One replay shard."""

    def __init__(self, context: RoleContext, shard: int, incarnation: int, capacity: int) -> None:
        super().__init__(context)
        config = context.config
        self._shard = ReplayShard(
            config.replay,
            context.spec.block_schema(config.actors.n_step),
            shard=shard,
            incarnation=incarnation,
            capacity=capacity,
            seed=Seeds(config.run.seed).stream("shard", shard, incarnation),
            folder=context.replay / f"shard-{shard}",
            recovers_later=True,
        )

    def insert(self, encoded: np.ndarray) -> InsertReply:
        """See ReplayShard.insert."""
        return self._shard.insert(encoded)

    def exchange(self, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
        """See ReplayShard.exchange."""
        return self._shard.exchange(update, request)

    def status(self) -> ShardStatus:
        """See ReplayShard.status."""
        return self._shard.status(self._usage.due() if self._usage else None)

    def recovery(self) -> tuple[RecoveryReport | None, ShardStatus] | None:
        """Reads the journal for one chunk; None: ask again, more is left to read.

        At the end the report on the journal (None without one) and the shard's status.
        """
        if not self._shard.recover(self._chunk_seconds):
            return None
        return self._shard.recovery, self._shard.status()

    def seal_slice(self, into: Path) -> SealReply:
        """See ReplayShard.seal_slice."""
        return self._shard.seal_slice(into)

    def close(self) -> None:
        """See ReplayShard.close."""
        self._shard.close()
