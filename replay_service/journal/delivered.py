"""The state that makes pushes exactly-once: what a shard has received from each writer.

Owns that value; must not import anything of the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from replay_service.block import TransitionBlock


@dataclass(frozen=True)
class Delivered:
    """All that a shard has received over its incarnations.

    writers: writer -> its incarnation and the sequence number of its next push. Totals as in ShardStatus.
    """

    writers: Mapping[int, tuple[int, int]]
    inserted_transitions_total: int
    env_steps_total: int

    def after(self, block: TransitionBlock) -> Delivered:
        """The state after one more block."""
        return Delivered(
            {**self.writers, block.writer: (block.incarnation, block.sequence + 1)},
            self.inserted_transitions_total + block.num_transitions,
            self.env_steps_total + block.env_steps,
        )
