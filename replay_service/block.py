"""The transition block: what an actor pushes, a shard stores and a journal keeps.

Owns the in-memory form and its invariants; must not import anything but numpy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TERMINATED = 1
TRUNCATED = 2

OBSERVATION = "observation"
"""Frame field of an observation that is one array; each of several arrays is a field "observation.KEY"."""
ACTION_MASK = "action_mask"
"""Frame field [A] bool: the actions allowed on a frame, where the environment masks actions."""


@dataclass(frozen=True)
class FrameField:
    """One named array stored per frame. `dtype` is a numpy dtype string, `shape` excludes the frame axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes_per_frame(self) -> int:
        """Bytes of one frame of this field."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class BlockSchema:
    """The layout of all blocks of a run; a reader refuses a block of another schema.

    `stack` frames make an observation (1: a single frame). A transition spans at most `n_step` steps.
    """

    frame_fields: tuple[FrameField, ...]
    stack: int
    n_step: int

    @property
    def window(self) -> int:
        """W, the number of frames that hold both observations of a sampled transition.

        n = 1: `stack + 1` consecutive frames, because the two stacks overlap in all but one frame.
        n >= 2: `2 * stack`, one stack after the other.
        Either way obs = w[:, :stack] and next_obs = w[:, -stack:].
        """
        return self.stack + 1 if self.n_step == 1 else 2 * self.stack

    @property
    def span(self) -> int:
        """Most frames from the first of a transition's stack to its next frame, both included."""
        return self.stack + self.n_step


@dataclass(frozen=True, eq=False)
class TransitionBlock:
    """R n-step transitions over F frames. Each frame is stored once; no transition needs another block.

    Transitions refer to frames by index into this block. A stack is the `stack` frames that end in the
    referred frame, with indices clamped from below at `first_frame`: clamping pads an episode's start, so no
    padding frames are stored.

    Attributes:
        schema: shared by all blocks of a run.
        writer, incarnation, sequence: identify the push, for exactly-once delivery.
        env_steps: environment steps since the writer's block before (>= 0; need not equal R).
        frames: field name -> [F, *field.shape] of field.dtype.
        action: [R] int32.
        reward: [R] float32, n-step sum: sum over k < m of gamma^k * r_{t+k}, m <= n_step.
        discount: [R] float32, gamma^m, 0 where the episode terminated within the transition.
        one_step_reward: [R] float32, r_t alone.
        end: [R] uint8, TERMINATED and TRUNCATED bits of the transition's last step.
        policy_version: [R] int64, version of the weights that chose the action.
        obs_frame, next_frame, first_frame: [R] int32 with 0 <= first <= obs < next < F.
        priority: [R] float32, initial absolute TD error, finite and >= 0.
    """

    schema: BlockSchema
    writer: int
    incarnation: int
    sequence: int
    env_steps: int
    frames: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    one_step_reward: np.ndarray
    end: np.ndarray
    policy_version: np.ndarray
    obs_frame: np.ndarray
    next_frame: np.ndarray
    first_frame: np.ndarray
    priority: np.ndarray

    @property
    def num_transitions(self) -> int:
        """R, the number of transitions."""
        return len(self.action)

    @property
    def num_frames(self) -> int:
        """F, the number of frames."""
        return len(next(iter(self.frames.values())))


TRANSITION_FIELDS: tuple[tuple[str, str], ...] = (
    ("action", "<i4"),
    ("reward", "<f4"),
    ("discount", "<f4"),
    ("one_step_reward", "<f4"),
    ("end", "|u1"),
    ("policy_version", "<i8"),
    ("obs_frame", "<i4"),
    ("next_frame", "<i4"),
    ("first_frame", "<i4"),
    ("priority", "<f4"),
)
"""Name and dtype of each field that has one item per transition, in wire order."""
