"""From windows of frames to obs_tm1, obs_t and masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from learner.batch import observations, to_batch
from learner.config import NetworkSpec
from replay_service.messages import Minibatch


def test_observations_are_the_ends_of_a_window() -> None:
    window = np.arange(2 * 3).reshape(2, 3)
    assert [part.tolist() for part in observations(window, 2)] == [[[0, 1], [3, 4]], [[1, 2], [4, 5]]]
    assert [part.tolist() for part in observations(window[:, :2], 1)] == [[0, 3], [1, 4]]
    images = np.zeros((5, 8, 36, 40), np.uint8)  # n-step transitions of 4-frame stacks
    assert [part.shape for part in observations(images, 4)] == [(5, 4, 36, 40)] * 2
    assert observations(images, 4)[0].base is not None


def test_a_batch_has_the_mask_of_the_next_observation() -> None:
    masks = np.zeros((4, 6, 3), np.bool_)  # B, W = 2 stack, A
    masks[:, -1] = [[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]]
    minibatch = Minibatch(
        windows={"observation": np.zeros((4, 6, 2), np.float32), "action_mask": masks},
        action=np.zeros(4, np.int32),
        reward=np.zeros(4, np.float32),
        discount=np.ones(4, np.float32),
        policy_version=np.zeros(4, np.int64),
        weight=np.ones(4, np.float32),
        index=0,
    )
    batch = to_batch(minibatch, 3, torch.device("cpu"))
    assert batch.allowed_t is not None
    assert batch.allowed_t.tolist() == masks[:, -1].tolist()
    assert isinstance(batch.obs_t, torch.Tensor)
    assert batch.obs_t.shape == (4, 3, 2)


def test_one_step_windows_of_parts(
    parts_spec: NetworkSpec, random_minibatch: Callable[..., Minibatch]
) -> None:
    batch = to_batch(random_minibatch(parts_spec, 8, width=3), 2, torch.device("cpu"))
    assert isinstance(batch.obs_tm1, dict)
    assert isinstance(batch.obs_t, dict)
    assert list(batch.obs_t) == ["camera", "arm.speed", "arm.flags", "height"]
    torch.testing.assert_close(batch.obs_tm1["height"][:, 1], batch.obs_t["height"][:, 0])
