"""Targets where not every action may be taken next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learner.batch import Batch, to_batch
from learner.config import LearnerConfig
from learner.objectives.categorical import support
from learner.objectives.heads import make_head
from learner.objectives.targets import double_q_target, masked, q_learning_target
from replay_service.messages import Minibatch

R_T, DISCOUNT_T = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5])
ALLOWED_T = torch.tensor([[True, False, True], [False, True, False]])


def test_the_maximum_is_over_allowed_actions() -> None:
    q_t = torch.tensor([[3.0, 9.0, -4.0], [8.0, -2.0, 8.0]])
    target = q_learning_target(R_T, DISCOUNT_T, q_t, ALLOWED_T)
    torch.testing.assert_close(target, torch.tensor([2.5, -2.0]))
    everything = torch.ones_like(ALLOWED_T)
    torch.testing.assert_close(
        q_learning_target(R_T, DISCOUNT_T, q_t, everything), q_learning_target(R_T, DISCOUNT_T, q_t)
    )


def test_the_online_network_chooses_among_allowed_actions() -> None:
    # The online network likes action 1 best in the first row, of the others action 2; the target network
    # values that at 10, though it likes action 0 better.
    online = torch.tensor([[0.0, 9.0, 1.0], [9.0, 0.0, 9.0]])
    target = torch.tensor([[20.0, 99.0, 10.0], [99.0, -4.0, 99.0]])
    y = double_q_target(R_T, DISCOUNT_T, online, target, ALLOWED_T)
    torch.testing.assert_close(y, torch.tensor([6.0, -3.0]))


def test_a_terminal_row_without_any_allowed_action_is_its_reward() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    q_t, ended = torch.full((2, 3), 7.0), torch.zeros(2)
    assert q_learning_target(R_T, ended, q_t, nothing).tolist() == [1.0, -1.0]
    assert double_q_target(R_T, ended, q_t, q_t, nothing).tolist() == [1.0, -1.0]


def test_not_a_number_stays_visible_under_a_mask() -> None:
    q_t = torch.tensor([[torch.nan, 9.0, -4.0], [8.0, -2.0, 8.0]])
    assert q_learning_target(R_T, DISCOUNT_T, q_t, ALLOWED_T).isnan().tolist() == [True, False]


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"allowed has shape \[2, 1\], expected \[2, 3\]"):
        masked(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("head", ["q", "c51", "qr"])
def test_every_head_bootstraps_from_the_best_allowed_action(head: Any, double: bool) -> None:
    config = LearnerConfig(head=head, double=double, num_atoms=3, value_range=(-1.0, 1.0))
    # Distributions with means -1, 0.5 and 0, of which the mask leaves the first and the last.
    spread = torch.tensor([[[30.0, 0.0, 0.0], [0.0, 0.7, 1.3], [0.0, 30.0, 0.0]]])
    means = torch.tensor([-1.0, 0.5, 0.0])
    if head == "q":
        outputs_t = means.unsqueeze(0)
    elif head == "c51":
        outputs_t = spread
    else:
        outputs_t = means.view(1, 3, 1).expand(1, 3, 3)
    batch = Batch(
        obs_tm1=torch.zeros(1, 1),
        a_tm1=torch.tensor([0]),
        r_t=torch.tensor([0.25]),
        discount_t=torch.tensor([0.5]),
        obs_t=torch.zeros(1, 1),
        weight=torch.ones(1),
        allowed_t=torch.tensor([[True, False, True]]),
    )
    fit = make_head(config, torch.device("cpu")).fit(
        batch, torch.zeros_like(outputs_t), outputs_t, outputs_t if double else None
    )
    assert support((-1.0, 1.0), 3).tolist() == [-1.0, 0.0, 1.0]
    torch.testing.assert_close(fit.target, torch.tensor([0.25]), rtol=0, atol=1e-5)


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
