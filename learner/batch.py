"""A minibatch as the tensors that an update reads.

Owns how frame windows become obs_tm1 and obs_t; must not import networks or the loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.core import minibatch_arrays
from replay_service.block import ACTION_MASK, OBSERVATION
from replay_service.messages import Minibatch

Observations = Tensor | dict[str, Tensor]
"""[B, *observation_shape], or part name -> [B, *shape] where an observation consists of several arrays."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B transitions as tensors on the learner's device.

    obs_tm1, obs_t [B, *observation_shape], or dicts of parts (NetworkSpec.parts); a_tm1 [B] int64;
    r_t, discount_t, weight [B] float32; allowed_tm1, allowed_t [B, A] bool, the actions that obs_tm1 and
    obs_t allow (None: all).
    """

    obs_tm1: Observations
    a_tm1: Tensor
    r_t: Tensor
    discount_t: Tensor
    obs_t: Observations
    weight: Tensor
    allowed_tm1: Tensor | None = None
    allowed_t: Tensor | None = None


def observations(window: Tensor, stack: int) -> tuple[Tensor, Tensor]:
    """obs_tm1 and obs_t of frame windows [B, W, *frame], as views: the first and the last `stack` frames.

    Each is [B, stack, *frame], or [B, *frame] where stack is 1.
    """
    if stack == 1:
        return window[:, 0], window[:, -1]
    return window[:, :stack], window[:, -stack:]


def batch_of(tensors: Mapping[str, Tensor], stack: int) -> Batch:
    """The batch of the tensors of `minibatch_arrays`, on their device; it shares their memory."""
    obs_tm1: Observations
    obs_t: Observations
    if OBSERVATION in tensors:
        obs_tm1, obs_t = observations(tensors[OBSERVATION], stack)
    else:
        prefix = f"{OBSERVATION}."
        parts = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        obs_tm1 = {name: observations(window, stack)[0] for name, window in parts.items()}
        obs_t = {name: observations(window, stack)[1] for name, window in parts.items()}
    mask = tensors.get(ACTION_MASK)
    return Batch(
        obs_tm1=obs_tm1,
        a_tm1=tensors["action"].long(),
        r_t=tensors["reward"],
        discount_t=tensors["discount"],
        obs_t=obs_t,
        weight=tensors["weight"],
        allowed_tm1=None if mask is None else mask[:, stack - 1],
        allowed_t=None if mask is None else mask[:, -1],
    )


def to_batch(minibatch: Minibatch, stack: int, device: torch.device) -> Batch:
    """A minibatch as a batch. Its tensors are copies, but on the CPU they share the minibatch's memory."""
    arrays = minibatch_arrays(minibatch)
    return batch_of({name: torch.from_numpy(array).to(device) for name, array in arrays.items()}, stack)
