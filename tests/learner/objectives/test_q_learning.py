from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.config import LearnerConfig
from learner.objectives.q_learning import (
    TdLoss,
    double_q_target,
    huber_td_loss,
    masked,
    q_learning_target,
    squared_td_loss,
    tabular_backup,
    td_loss,
)

R_T, DISCOUNT_T = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5])
ALLOWED_T = torch.tensor([[True, False, True], [False, True, False]])
LOSSES = [LearnerConfig(), LearnerConfig(loss="huber", huber_delta=0.7)]


def test_worked_example() -> None:
    # gamma 0.99, reward 1, best next value 14.0: target 1 + 0.99 * 14.0 = 14.86; less Q = 12.4: 2.46.
    target = q_learning_target(torch.tensor([1.0]), torch.tensor([0.99]), torch.tensor([[13.0, 14.0]]))
    torch.testing.assert_close(target, torch.tensor([14.86]))
    torch.testing.assert_close(target - torch.tensor([12.4]), torch.tensor([2.46]))


def test_a_terminal_transition_is_its_reward_and_a_truncated_one_bootstraps() -> None:
    r_t, discount_t = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.99])
    q_t = torch.tensor([[5.0, 100.0], [5.0, 100.0]])
    torch.testing.assert_close(q_learning_target(r_t, discount_t, q_t), torch.tensor([1.0, 100.0]))
    torch.testing.assert_close(double_q_target(r_t, discount_t, q_t, q_t), torch.tensor([1.0, 100.0]))


def test_double_q_takes_the_online_choice_at_the_target_value() -> None:
    r_t, discount_t = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5])
    q_t_online = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 9.0]])
    q_t_target = torch.tensor([[10.0, 99.0, 99.0], [99.0, 99.0, -4.0]])
    target = double_q_target(r_t, discount_t, q_t_online, q_t_target)
    torch.testing.assert_close(target, torch.tensor([6.0, -3.0]))


@given(seed=st.integers(0, 2**31), batch_size=st.integers(1, 9), num_actions=st.integers(1, 5))
def test_targets_equal_their_definition_one_by_one(seed: int, batch_size: int, num_actions: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    r_t, discount_t = torch.randn(2, batch_size, generator=generator)
    q_online, q_target = torch.randn(2, batch_size, num_actions, generator=generator)
    single = q_learning_target(r_t, discount_t, q_target)
    double = double_q_target(r_t, discount_t, q_online, q_target)
    for row in range(batch_size):
        values, choices = q_target[row].tolist(), q_online[row].tolist()
        reward, discount = float(r_t[row]), float(discount_t[row])
        assert float(single[row]) == pytest.approx(reward + discount * max(values), abs=1e-5)
        chosen = values[choices.index(max(choices))]
        assert float(double[row]) == pytest.approx(reward + discount * chosen, abs=1e-5)


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


def test_a_terminal_transition_without_any_allowed_action_is_its_reward() -> None:
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


@pytest.mark.parametrize(
    ("r_t", "discount_t", "q_t"),
    [
        (torch.ones(3, 1), torch.ones(3), torch.ones(3, 2)),
        (torch.ones(3), torch.ones(3, 1), torch.ones(3, 2)),
        (torch.ones(3), torch.ones(1), torch.ones(3, 2)),
        (torch.ones(3), torch.ones(3), torch.ones(1, 2)),
        (torch.ones(3), torch.ones(3), torch.ones(3)),
    ],
)
def test_no_target_broadcasts(r_t: Tensor, discount_t: Tensor, q_t: Tensor) -> None:
    with pytest.raises(ValueError, match="has shape"):
        q_learning_target(r_t, discount_t, q_t)
    with pytest.raises(ValueError, match="has shape"):
        double_q_target(r_t, discount_t, q_t, q_t)


def test_double_q_wants_both_networks_on_the_same_actions() -> None:
    with pytest.raises(ValueError, match="q_t_target"):
        double_q_target(torch.ones(3), torch.ones(3), torch.ones(3, 2), torch.ones(3, 3))


def test_tabular_backup_by_hand() -> None:
    q = torch.tensor([[12.4, 0.0], [13.0, 14.0]])
    # 12.4 + 0.5 * (1 + 0.99 * 14.0 - 12.4) = 12.4 + 0.5 * 2.46 = 13.63
    backed_up = tabular_backup(q, s_tm1=0, a_tm1=0, r_t=1.0, discount_t=0.99, s_t=1, alpha=0.5)
    torch.testing.assert_close(backed_up, torch.tensor([[13.63, 0.0], [13.0, 14.0]]))
    torch.testing.assert_close(q[0, 0], torch.tensor(12.4))


def test_tabular_backup_of_a_terminal_transition_does_not_bootstrap() -> None:
    q = torch.tensor([[0.0, 2.0], [50.0, 60.0]])
    backed_up = tabular_backup(q, s_tm1=0, a_tm1=1, r_t=-1.0, discount_t=0.0, s_t=1, alpha=1.0)
    torch.testing.assert_close(backed_up, torch.tensor([[0.0, -1.0], [50.0, 60.0]]))


def test_squared_loss_of_the_worked_example() -> None:
    # One TD error of 2.46: the loss is 2.46^2 = 6.0516, not half of it.
    loss, _ = squared_td_loss(torch.tensor([2.46]), torch.tensor([1.0]))
    torch.testing.assert_close(loss, torch.tensor(6.0516))


def test_squared_loss_is_the_mean_of_weighted_squares() -> None:
    # (1 * 4 + 0.5 * 16 + 0 * 100) / 3 = 4
    loss, _ = squared_td_loss(torch.tensor([2.0, -4.0, 10.0]), torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(loss, torch.tensor(4.0))


def test_huber_loss_is_a_half_square_then_a_line() -> None:
    # delta 2: h(1) = 0.5, h(-2) = 2, h(5) = 2 * (5 - 1) = 8, weighted by 1, 1, 0.5: (0.5 + 2 + 4) / 3
    loss, _ = huber_td_loss(torch.tensor([1.0, -2.0, 5.0]), torch.tensor([1.0, 1.0, 0.5]), delta=2.0)
    torch.testing.assert_close(loss, torch.tensor(6.5 / 3))


@pytest.mark.parametrize("config", LOSSES, ids=lambda config: config.loss)
def test_gradient_is_the_finite_difference_of_the_value(config: LearnerConfig) -> None:
    loss, step = td_loss(config), 1e-6
    generator = torch.Generator().manual_seed(3)
    target, q_tm1, weight = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    _, gradient = loss(target - q_tm1, weight)
    for index, shift in enumerate(step * torch.eye(8, dtype=torch.float64)):
        higher, _ = loss(target - (q_tm1 + shift), weight)
        lower, _ = loss(target - (q_tm1 - shift), weight)
        torch.testing.assert_close(gradient[index], (higher - lower) / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("config", LOSSES, ids=lambda config: config.loss)
def test_gradient_is_what_autograd_finds_through_q_tm1_alone(config: LearnerConfig) -> None:
    loss = td_loss(config)
    q_tm1 = torch.tensor([0.2, -1.0, 3.0], requires_grad=True)
    target, weight = torch.tensor([1.0, -1.3, 0.0]), torch.tensor([1.0, 0.5, 0.25])
    value, gradient = loss(target - q_tm1, weight)
    value.backward()
    torch.testing.assert_close(gradient.detach(), q_tm1.grad)


@pytest.mark.parametrize("loss", [td_loss(config) for config in LOSSES])
@pytest.mark.parametrize("weight", [torch.ones(3, 1), torch.ones(1), torch.ones(())])
def test_no_loss_broadcasts(loss: TdLoss, weight: Tensor) -> None:
    with pytest.raises(ValueError, match="weight has shape"):
        loss(torch.ones(3), weight)
    with pytest.raises(ValueError, match="td has shape"):
        loss(torch.ones(3, 1), torch.ones(3, 1))


def test_the_losses_pass_gradcheck() -> None:
    td = torch.tensor([0.3, -0.2, 2.0, -3.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 0.5, 0.1, 0.9], dtype=torch.float64)
    for loss in (squared_td_loss, partial(huber_td_loss, delta=1.0)):
        assert torch.autograd.gradcheck(lambda td, weight, loss=loss: loss(td, weight)[0], (td, weight))
