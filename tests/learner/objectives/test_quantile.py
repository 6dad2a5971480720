from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.objectives.quantile import quantile_huber_loss, quantile_target


def loss_in_loops(
    quantiles_tm1: Tensor, target: Tensor, weight: Tensor, kappa: float, fractions: Tensor | None = None
) -> float:
    """Equations 9 and 10 of the paper as they are written."""
    total = 0.0
    (batch_size, num_quantiles), num_targets = quantiles_tm1.shape, target.shape[1]
    for row in range(batch_size):
        for i in range(num_quantiles):
            tau = (2 * i + 1) / (2 * num_quantiles) if fractions is None else float(fractions[row, i])
            for j in range(num_targets):
                u = float(target[row, j]) - float(quantiles_tm1[row, i])
                huber = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                chance = abs(tau - (1.0 if u < 0.0 else 0.0))
                total += float(weight[row]) * chance * huber / kappa / num_targets
    return total / batch_size


def test_target_scales_and_shifts_every_quantile_and_terminal_rows_have_only_the_reward() -> None:
    target = quantile_target(
        torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0]), torch.tensor([[2.0, 4.0], [7.0, 9.0]])
    )
    torch.testing.assert_close(target, torch.tensor([[2.0, 3.0], [-2.0, -2.0]]))


def test_loss_by_hand() -> None:
    # One row, quantiles 0 (tau 1/4) and 1 (tau 3/4), one target 3, kappa 1: u = 3 and 2, h = 2.5 and 1.5,
    # 1/4 * 2.5 + 3/4 * 1.5 = 1.75. Signs the wrong way round would give 3/4 * 2.5 + 1/4 * 1.5 = 2.25.
    quantiles, weight = torch.tensor([[0.0, 1.0]]), torch.ones(1)
    assert quantile_huber_loss(quantiles, torch.tensor([[3.0]]), weight, 1.0)[0] == 1.75
    # Target -1: u = -1 and -2, h = 0.5 and 1.5, 3/4 * 0.5 + 1/4 * 1.5 = 0.75.
    assert quantile_huber_loss(quantiles, torch.tensor([[-1.0]]), weight, 1.0)[0] == 0.75
    # Both targets: the mean over targets, the sum over quantiles.
    assert quantile_huber_loss(quantiles, torch.tensor([[3.0, -1.0]]), weight, 1.0)[0] == 1.25
    # Fractions 0.9 and 0.2 instead of the midpoints: 0.9 * 2.5 + 0.2 * 1.5 = 2.55.
    drawn = torch.tensor([[0.9, 0.2]])
    torch.testing.assert_close(
        quantile_huber_loss(quantiles, torch.tensor([[3.0]]), weight, 1.0, drawn)[0], torch.tensor(2.55)
    )
    # kappa divides: u = 3, 2 with kappa 2: h = 4, 2; (1/4 * 4 + 3/4 * 2) / 2 = 1.25.
    assert quantile_huber_loss(quantiles, torch.tensor([[3.0]]), weight, 2.0)[0] == 1.25


@given(
    seed=st.integers(0, 2**31),
    batch_size=st.integers(1, 4),
    num_quantiles=st.integers(1, 6),
    num_targets=st.integers(1, 6),
    kappa=st.sampled_from([0.1, 1.0, 3.0]),
    implicit=st.booleans(),
)
def test_loss_is_the_double_sum_and_gradient_its_gradient(
    seed: int, batch_size: int, num_quantiles: int, num_targets: int, kappa: float, implicit: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    quantiles = torch.randn(batch_size, num_quantiles, dtype=torch.float64, generator=generator)
    target = 2.0 * torch.randn(batch_size, num_targets, dtype=torch.float64, generator=generator)
    weight = torch.rand(batch_size, dtype=torch.float64, generator=generator)
    shape = (batch_size, num_quantiles)
    fractions = torch.rand(*shape, dtype=torch.float64, generator=generator) if implicit else None
    quantiles.requires_grad_()
    loss, gradient = quantile_huber_loss(quantiles, target, weight, kappa, fractions)
    expected_loss = loss_in_loops(quantiles.detach(), target, weight, kappa, fractions)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-9)
    (expected,) = torch.autograd.grad(loss, quantiles)
    torch.testing.assert_close(gradient.detach(), expected)


def test_gradient_is_the_finite_difference_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(4)
    quantiles, target = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    weight = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    _, gradient = quantile_huber_loss(quantiles, target, weight, 0.7)
    for flat in range(quantiles.numel()):
        shift = torch.zeros_like(quantiles)
        shift.view(-1)[flat] = 1e-6
        higher, _ = quantile_huber_loss(quantiles + shift, target, weight, 0.7)
        lower, _ = quantile_huber_loss(quantiles - shift, target, weight, 0.7)
        torch.testing.assert_close(gradient.view(-1)[flat], (higher - lower) / 2e-6, rtol=1e-5, atol=1e-9)


def test_descent_finds_the_quantiles_of_a_known_distribution() -> None:
    # Midpoints 1/8, 3/8, 5/8, 7/8 of the uniform distribution on [0, 8]: 1, 3, 5, 7.
    target = torch.linspace(0.0, 8.0, 801).unsqueeze(0)
    quantiles = torch.zeros(1, 4)
    for _ in range(400):
        quantiles -= quantile_huber_loss(quantiles, target, torch.ones(1), kappa=0.01)[1]
    np.testing.assert_allclose(quantiles[0], [1.0, 3.0, 5.0, 7.0], atol=0.05)


def test_nothing_is_broadcast() -> None:
    rows, weight = torch.ones(2, 3), torch.ones(2)
    for r_t, discount_t, quantiles_t in [
        (weight.unsqueeze(1), weight, rows),
        (weight, weight[:1], rows),
        (weight, weight, rows[:1]),
        (weight, weight, weight),
    ]:
        with pytest.raises(ValueError, match="has shape"):
            quantile_target(r_t, discount_t, quantiles_t)
    for quantiles, target, weights in [
        (rows[:1], rows, weight),
        (rows, rows[:1], weight),
        (rows, weight, weight),
        (rows, rows, weight.unsqueeze(1)),
        (rows, rows, weight[:1]),
    ]:
        with pytest.raises(ValueError, match="has shape"):
            quantile_huber_loss(quantiles, target, weights, 1.0)
    with pytest.raises(ValueError, match=r"fractions has shape \[3\], expected \[2, 3\]"):
        quantile_huber_loss(rows, rows, weight, 1.0, torch.ones(3))
