"""Where actors of tests push their blocks."""

from __future__ import annotations

from replay_service.block import TransitionBlock
from replay_service.messages import ShardStatus


class ListSink:
    """Keeps every block; has these statuses of shards to tell."""

    def __init__(self, *statuses: ShardStatus) -> None:
        self.blocks: list[TransitionBlock] = []
        self._statuses = statuses

    def push(self, block: TransitionBlock) -> None:
        self.blocks.append(block)

    def statuses(self) -> tuple[ShardStatus, ...]:
        return self._statuses
