"""The tiny interfaces between acting and what it is wired to.

Owns protocols and the reports that loops return; must not import gymnasium.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from replay_service.block import BlockSchema, TransitionBlock
from replay_service.messages import ShardStatus


class Policy(Protocol):
    """Greedy part of acting: weights in, Q-values out."""

    def load(self, flat_weights: np.ndarray) -> None:
        """Takes one flat float32 vector [P], parameters in the learner's order.

        Raises ValueError on a wrong size.
        """

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """[N, *obs] -> [N, A] float32; obs is [*frame] where stack is 1, else [stack, *frame]."""


class BlockSink(Protocol):
    """Where finished blocks go; bounded in flight, so push may wait: that is the back-pressure."""

    def push(self, block: TransitionBlock) -> None:
        """Sends a block; its writer, incarnation and sequence are set by the sink's owner."""

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest acknowledged status of each shard heard of so far."""


@dataclass(frozen=True)
class EnvSpec:
    """What the rest of the system must know of an environment.

    observation_shape and dtype are of one *frame*; num_states is set for Discrete observations
    (frame shape ()), else None. backend and autoreset_mode name what acting will use.
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_states: int | None
    num_actions: int
    stack: int
    backend: str
    autoreset_mode: str
    max_episode_steps: int | None
    reward_threshold: float | None

    def block_schema(self, n_step: int) -> BlockSchema:
        """The schema of this environment's blocks: one frame field named "observation"."""
        from replay_service.block import FrameField

        frame = FrameField("observation", self.observation_dtype, self.observation_shape)
        return BlockSchema((frame,), self.stack, n_step)


@dataclass(frozen=True)
class RolloutReport:
    """Counters of one chunk. Episodes are those that ended in it; returns are undiscounted and raw."""

    actor: int
    incarnation: int
    version: int
    env_steps: int
    rows_pushed: int
    episode_returns: tuple[float, ...]
    episode_lengths: tuple[int, ...]
    epsilon: float
    seconds: Mapping[str, float]
    statuses: tuple[ShardStatus, ...]


@dataclass(frozen=True)
class EvaluationReport:
    """Greedy episodes of one version; episode i was played with the i-th seed of the domain."""

    version: int
    seed_domain: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    seconds: float
