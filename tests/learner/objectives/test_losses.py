from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.objectives.losses import TdLoss, huber_td_loss, squared_td_loss, td_loss

LOSSES = [LearnerConfig(), LearnerConfig(loss="huber", huber_delta=0.7)]


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
def test_nothing_is_broadcast(loss: TdLoss, weight: Tensor) -> None:
    with pytest.raises(ValueError, match="weight has shape"):
        loss(torch.ones(3), weight)
    with pytest.raises(ValueError, match="td has shape"):
        loss(torch.ones(3, 1), torch.ones(3, 1))


def test_the_losses_pass_gradcheck() -> None:
    td = torch.tensor([0.3, -0.2, 2.0, -3.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 0.5, 0.1, 0.9], dtype=torch.float64)
    for loss in (squared_td_loss, partial(huber_td_loss, delta=1.0)):
        assert torch.autograd.gradcheck(lambda td, weight, loss=loss: loss(td, weight)[0], (td, weight))
