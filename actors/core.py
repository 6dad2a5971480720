"""The interfaces between acting and the rest of the system.

Owns protocols, the description of an environment and the reports of loops; must not import gymnasium.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from replay_service.block import ACTION_MASK, OBSERVATION, BlockSchema, FrameField, TransitionBlock
from replay_service.messages import ProcessUsage, ShardStatus


class Policy(Protocol):
    """The greedy part of acting: weights in, Q-values out."""

    def load(self, flat_weights: np.ndarray) -> None:
        """Takes one flat float32 vector [P], parameters in the learner's order.

        Raises ValueError on a wrong size.
        """

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """[N, *obs] -> [N, A] float32; obs is [*frame] if stack is 1, else [stack, *frame].

        If the observation has several parts, it is a record with a field "observation.NAME" for each part
        (and other fields, which do not belong to the observation), [N] or [N, stack].
        """


class BlockSink(Protocol):
    """Takes finished blocks. Only a few may be in flight, so `push` may wait: this is the back-pressure."""

    def push(self, block: TransitionBlock) -> None:
        """Sends a block, with the writer, incarnation and sequence of the sink's owner."""

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest status of each shard that has acknowledged a block."""


@dataclass(frozen=True)
class EnvSpec:
    """The properties of an environment that the rest of the system depends on.

    observation_shape and dtype describe one *frame*; num_states is set for Discrete observations (frame
    shape ()), else None. If an observation consists of several arrays, `parts` has name, dtype and shape of
    each, and the frame is a record: shape (), dtype "|V". action_mask: the environment says in
    info["action_mask"] which actions may be taken. backend and autoreset_mode: the ones used for acting.

    pixels: names of the arrays with bounds 0 and 255, which networks divide by 255. image_layouts: name of
    each array of two to four axes -> the order of its axes, see actors.envs.images. An array alone has the
    name "observation".
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
    pixels: tuple[str, ...] = ()
    image_layouts: Mapping[str, str] = field(default_factory=dict)

    @property
    def frame_fields(self) -> tuple[FrameField, ...]:
        """The fields of a frame: "observation", or "observation.NAME" for each part; then the action mask."""
        fields = tuple(replace(part, name=f"{OBSERVATION}.{part.name}") for part in self.parts)
        fields = fields or (FrameField(OBSERVATION, self.observation_dtype, self.observation_shape),)
        mask = FrameField(ACTION_MASK, "|b1", (self.num_actions,))
        return (*fields, mask) if self.action_mask else fields

    @property
    def frame_dtype(self) -> np.dtype[Any]:
        """The numpy dtype of one frame, as the function frame_dtype makes it."""
        return frame_dtype(self.frame_fields)

    def block_schema(self, n_step: int) -> BlockSchema:
        """The schema of this environment's blocks."""
        return BlockSchema(self.frame_fields, self.stack, n_step)

    def read_as(self, saved: EnvSpec) -> EnvSpec:
        """This spec with the meaning that a saved one gave to the numbers, if their arrays are the same."""
        if self.frame_fields != saved.frame_fields:
            return self
        return replace(self, pixels=saved.pixels, image_layouts=saved.image_layouts)


def frame_dtype(fields: tuple[FrameField, ...]) -> np.dtype[Any]:
    """A whole frame as one numpy item, so that frames of any kind are indexed, stacked and copied alike.

    A single field is an array of its dtype and shape; several fields are a record.
    """
    if len(fields) == 1:
        return np.dtype((fields[0].dtype, fields[0].shape))
    # Aligned, so that torch can view a field without a copy.
    return np.dtype([(field.name, field.dtype, field.shape) for field in fields], align=True)


EnvRestartCause = Literal["raise", "invalid", "hang", "memory"]
"""An environment raised, returned what no frame can hold, did not return, or took too much memory."""


@dataclass(frozen=True)
class EnvRestart:
    """An environment misbehaved and was restarted.

    lane: its lane; None: all lanes of its actor. description: the traceback if it raised, else a sentence.
    """

    cause: EnvRestartCause
    lane: int | None
    description: str


@dataclass(frozen=True)
class BoundsReport:
    """How many of the observations looked at hold values beyond the bounds of their space, and one of them,
    in words; "" if none does."""

    looked_at: int = 0
    beyond: int = 0
    example: str = ""

    @property
    def text(self) -> str:
        """A sentence for the environment's user."""
        return (
            f"{self.beyond} of {self.looked_at} observations looked at leave the bounds of their space: "
            f"{self.example}; they are learned from as they are"
        )

    def __add__(self, other: BoundsReport) -> BoundsReport:
        return BoundsReport(
            self.looked_at + other.looked_at, self.beyond + other.beyond, self.example or other.example
        )


@dataclass(frozen=True)
class RolloutReport:
    """The result of one rollout chunk. Episodes are those that ended in it; returns are undiscounted and raw.

    seconds: time in each phase: "act", "env", "build", "push", and "idle" since the chunk before.
    start_values: max_a Q of each episode that began, empty before the first weights. action_counts [A] and
    reward_abs_* are over the transitions pushed, with rewards of single steps as the learner gets them.
    longest_open_steps: env steps so far of the longest episode in progress. bounds: of a sample of the
    observations.
    env_restarts: restarts in this chunk; a broken episode's return is not reported. The actor's owner fills
    in pushes_in_flight, unacknowledged_transitions (those in these pushes), process, and memory_excess: by
    how much its process exceeds its memory limit, in words; None if it does not.
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
    unacknowledged_transitions: int = 0
    process: ProcessUsage | None = None
    memory_excess: str | None = None
    env_restarts: tuple[EnvRestart, ...] = ()
    longest_open_steps: int = 0
    bounds: BoundsReport = BoundsReport()

    @property
    def worked_seconds(self) -> float:
        """Seconds in all phases but "idle"."""
        return sum(self.seconds.values()) - self.seconds.get("idle", 0.0)


PROBE_STEPS = 1_000
"""Random steps within which an episode of an environment that states no step limit should end; of a fast
environment, more."""

MOST_EPISODE_STEPS = 27_000
"""Greedy episodes end there at the latest: Atari's limit (Mnih et al. 2015, doi:10.1038/nature14236)."""


@dataclass(frozen=True)
class EvaluationReport:
    """Greedy episodes of one version; episode i was played with the i-th seed of the domain.

    start_values: max_a Q of each first observation. discounted_returns: discounted sums of the rewards as the
    learner gets them, which start_values predict; the sum of a truncated episode ends where it was truncated.
    action_counts [A]: over all steps. idle_seconds: time since the evaluation before. env_restarts: restarts
    in this evaluation; further seeds of the domain replace broken episodes. The evaluator's owner fills in
    process.
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
