"""The tiny interfaces between acting and what it is wired to.

Owns protocols and the reports that loops return; must not import gymnasium.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from replay_service.block import ACTION_MASK, OBSERVATION, BlockSchema, FrameField, TransitionBlock
from replay_service.messages import ProcessUsage, ShardStatus


class Policy(Protocol):
    """Greedy part of acting: weights in, Q-values out."""

    def load(self, flat_weights: np.ndarray) -> None:
        """Takes one flat float32 vector [P], parameters in the learner's order.

        Raises ValueError on a wrong size.
        """

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """[N, *obs] -> [N, A] float32; obs is [*frame] where stack is 1, else [stack, *frame].

        Where the observation has several parts: records [N] or [N, stack] with a field "observation.NAME"
        for each part (and others, which are not part of the observation).
        """


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
    (frame shape ()), else None. Where an observation consists of several arrays, `parts` has name, dtype and
    shape of each, and the frame is a record: shape (), dtype "|V". action_mask: the environment says in
    info["action_mask"] which actions may be taken. backend and autoreset_mode name what acting will use.
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
    parts: tuple[FrameField, ...] = ()
    action_mask: bool = False

    @property
    def frame_fields(self) -> tuple[FrameField, ...]:
        """What a frame holds: "observation", or "observation.NAME" for each part; then the action mask."""
        fields = tuple(replace(part, name=f"{OBSERVATION}.{part.name}") for part in self.parts)
        fields = fields or (FrameField(OBSERVATION, self.observation_dtype, self.observation_shape),)
        mask = FrameField(ACTION_MASK, "|b1", (self.num_actions,))
        return (*fields, mask) if self.action_mask else fields

    @property
    def frame_dtype(self) -> np.dtype[Any]:
        """See frame_dtype below."""
        return frame_dtype(self.frame_fields)

    def block_schema(self, n_step: int) -> BlockSchema:
        """The schema of this environment's blocks."""
        return BlockSchema(self.frame_fields, self.stack, n_step)


def frame_dtype(fields: tuple[FrameField, ...]) -> np.dtype[Any]:
    """A whole frame as one numpy item, so that frames of any kind are indexed, stacked and copied alike.

    One field alone is an array of its dtype and shape; several are a record.
    """
    if len(fields) == 1:
        return np.dtype((fields[0].dtype, fields[0].shape))
    # Aligned, so that torch can look at a field without a copy.
    return np.dtype([(field.name, field.dtype, field.shape) for field in fields], align=True)


EnvRestartCause = Literal["raise", "invalid", "hang", "memory"]
"""What an environment did: raise, return what no frame can hold, not return, or take too much memory."""


@dataclass(frozen=True)
class EnvRestart:
    """An environment that misbehaved and was made anew.

    lane: which one; None: all of an actor's, which its backend makes only together. story: the traceback
    where it raised, else what is wrong with what it returned.
    """

    cause: EnvRestartCause
    lane: int | None
    description: str


@dataclass(frozen=True)
class RolloutReport:
    """Counters of one chunk. Episodes are those that ended in it; returns are undiscounted and raw.

    seconds by phase: "act", "env", "build", "push", and "idle" between this chunk and the last.
    start_values: max_a Q of each episode that began, once there are weights. action_counts [A] and the
    reward figures are over the rows pushed, rewards of one step and as the learner gets them.
    env_restarts: environments made anew in this chunk; their broken episodes are neither rows nor returns.
    pushes_in_flight, process and memory_excess are filled in by whoever runs the actor; the last says, where
    its process holds too much memory, how much.
    """

    actor: int
    incarnation: int
    version: int
    env_steps: int
    transitions_pushed: int
    episode_returns: tuple[float, ...]
    episode_lengths: tuple[int, ...]
    epsilon: float
    seconds: Mapping[str, float]
    statuses: tuple[ShardStatus, ...]
    start_values: tuple[float, ...] = ()
    action_counts: tuple[int, ...] = ()
    reward_abs_sum: float = 0.0
    reward_abs_max: float = 0.0
    pushes_in_flight: int = 0
    process: ProcessUsage | None = None
    memory_excess: str | None = None
    env_restarts: tuple[EnvRestart, ...] = ()

    @property
    def worked_seconds(self) -> float:
        """All but "idle"."""
        return sum(self.seconds.values()) - self.seconds.get("idle", 0.0)


@dataclass(frozen=True)
class EvaluationReport:
    """Greedy episodes of one version; episode i was played with the i-th seed of the domain.

    start_values: max_a Q of each first observation. discounted_returns: what they foretell, sums of the
    rewards as the learner gets them, discounted; those of truncated episodes lack what would have followed.
    action_counts [A]: over all steps. idle_seconds: between this evaluation and the last. env_restarts:
    environments made anew; further seeds of the domain stand in for their broken episodes. process is filled
    in by whoever runs the evaluator.
    """

    version: int
    seed_domain: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    seconds: float
    start_values: tuple[float, ...] = ()
    discounted_returns: tuple[float, ...] = ()
    truncated: tuple[bool, ...] = ()
    action_counts: tuple[int, ...] = ()
    idle_seconds: float = 0.0
    process: ProcessUsage | None = None
    env_restarts: tuple[EnvRestart, ...] = ()
