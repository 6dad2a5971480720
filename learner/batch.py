"""A minibatch as the tensors that an update reads.

Owns the way from frame windows to obs_tm1 and obs_t; must not import networks or the learning loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replay_service.messages import Minibatch


@dataclass(frozen=True, eq=False)
class Batch:
    """B transitions as tensors on the learner's device.

    obs_tm1, obs_t [B, *observation_shape]; a_tm1 [B] int64; r_t, discount_t, weight [B] float32.
    """

    obs_tm1: Tensor
    a_tm1: Tensor
    r_t: Tensor
    discount_t: Tensor
    obs_t: Tensor
    weight: Tensor


def observations(window: np.ndarray, stack: int) -> tuple[np.ndarray, np.ndarray]:
    """obs_tm1 and obs_t of frame windows [B, W, *frame], as views: the first and the last `stack` frames.

    Each is [B, stack, *frame], or [B, *frame] where stack is 1.
    """
    if stack == 1:
        return window[:, 0], window[:, -1]
    return window[:, :stack], window[:, -stack:]


def to_batch(minibatch: Minibatch, stack: int, device: torch.device) -> Batch:
    """Tensors of a minibatch: on the CPU they share its memory, on a GPU they are copies under way."""

    def place(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    obs_tm1, obs_t = observations(minibatch.windows["observation"], stack)
    return Batch(
        obs_tm1=place(obs_tm1),
        a_tm1=place(minibatch.action).long(),
        r_t=place(minibatch.reward),
        discount_t=place(minibatch.discount),
        obs_t=place(obs_t),
        weight=place(minibatch.weight),
    )
