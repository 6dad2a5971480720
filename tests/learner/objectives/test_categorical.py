from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.objectives.categorical import (
    categorical_mean,
    categorical_target,
    cross_entropy_loss,
    support,
)

ATOMS = torch.tensor([0.0, 1.0, 2.0])


def algorithm_1(
    r_t: Tensor, discount_t: Tensor, probability_t: Tensor, low: float, high: float
) -> list[list[float]]:
    """The paper's algorithm in plain loops; where floor and ceiling agree, the atom takes all of the mass."""
    num_atoms = probability_t.shape[1]
    spacing = (high - low) / (num_atoms - 1)
    projected = [[0.0] * num_atoms for _ in range(len(r_t))]
    for row, masses in enumerate(projected):
        for j in range(num_atoms):
            value = float(r_t[row]) + float(discount_t[row]) * (low + j * spacing)
            position = (min(max(value, low), high) - low) / spacing
            below, above = math.floor(position), math.ceil(position)
            mass = float(probability_t[row, j])
            if below == above:
                masses[below] += mass
            else:
                masses[below] += mass * (above - position)
                masses[above] += mass * (position - below)
    return projected


def test_support_has_both_ends() -> None:
    torch.testing.assert_close(
        support((-10.0, 10.0), 51)[[0, 1, 25, 50]], torch.tensor([-10.0, -9.6, 0.0, 10.0])
    )


def test_mean_is_over_the_softmax() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [math.log(1.0), math.log(2.0), math.log(5.0)]]])
    torch.testing.assert_close(categorical_mean(logits, ATOMS), torch.tensor([[1.0, 1.5]]))


@pytest.mark.parametrize(
    ("r_t", "discount_t", "probability_t", "expected"),
    [
        # 0 + 1 * z falls on the atoms: floor equals ceiling, and no mass may vanish.
        (0.0, 1.0, [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        # 0.25 + 0.5 z = 0.25, 0.75, 1.25: the lower neighbor gets what is left over, not the distance.
        (0.25, 0.5, [1.0, 0.0, 0.0], [0.75, 0.25, 0.0]),
        (0.25, 0.5, [0.2, 0.3, 0.5], [0.15 + 0.075, 0.05 + 0.225 + 0.375, 0.125]),
        # Terminal: all mass at the reward, whatever the next distribution.
        (1.5, 0.0, [0.2, 0.3, 0.5], [0.0, 0.5, 0.5]),
        # Beyond the ends: clipped, not dropped and not wrapped.
        (9.0, 1.0, [0.2, 0.3, 0.5], [0.0, 0.0, 1.0]),
        (-9.0, 1.0, [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]),
    ],
)
def test_projection_by_hand(
    r_t: float, discount_t: float, probability_t: list[float], expected: list[float]
) -> None:
    projected = categorical_target(
        torch.tensor([r_t]), torch.tensor([discount_t]), torch.tensor([probability_t]), ATOMS
    )
    torch.testing.assert_close(projected, torch.tensor([expected]))


@given(
    seed=st.integers(0, 2**31),
    batch_size=st.integers(1, 5),
    num_atoms=st.integers(2, 12),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
)
def test_projection_is_the_paper_s_algorithm(
    seed: int, batch_size: int, num_atoms: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    r_t = scale * torch.randn(batch_size, generator=generator, dtype=torch.float64)
    discount_t = torch.rand(batch_size, generator=generator, dtype=torch.float64).round(decimals=1)
    probability_t = torch.randn(batch_size, num_atoms, generator=generator, dtype=torch.float64).softmax(1)
    atoms = torch.linspace(-3.0, 5.0, num_atoms, dtype=torch.float64)
    projected = categorical_target(r_t, discount_t, probability_t, atoms)
    expected = torch.tensor(algorithm_1(r_t, discount_t, probability_t, -3.0, 5.0), dtype=torch.float64)
    torch.testing.assert_close(projected, expected, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(projected.sum(1), torch.ones(batch_size, dtype=torch.float64))


def test_projection_keeps_the_mean_inside_the_range() -> None:
    probability_t = torch.tensor([[0.1, 0.6, 0.3]])
    projected = categorical_target(torch.tensor([0.3]), torch.tensor([0.7]), probability_t, ATOMS)
    torch.testing.assert_close(projected @ ATOMS, 0.3 + 0.7 * (probability_t @ ATOMS))


@pytest.mark.parametrize("where", ["reward", "probability"])
def test_nan_goes_through_the_projection(where: str) -> None:
    r_t = torch.tensor([math.nan if where == "reward" else 0.0])
    probability_t = torch.full((1, 3), math.nan if where == "probability" else 1 / 3)
    assert categorical_target(r_t, torch.tensor([0.9]), probability_t, ATOMS).isnan().any()


def test_cross_entropy_by_hand() -> None:
    # Uniform guesses cost log 3 each; the second row counts a half: (1 + 0.5) log 3 / 2.
    target = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    weight = torch.tensor([1.0, 0.5])
    loss, gradient = cross_entropy_loss(torch.zeros(2, 3), target, weight)
    torch.testing.assert_close(loss, torch.tensor(0.75 * math.log(3.0)))
    third = 1 / 3
    by_hand = [[(third - 1) / 2, third / 2, third / 2], [(third - t) / 4 for t in (0.2, 0.3, 0.5)]]
    torch.testing.assert_close(gradient, torch.tensor(by_hand))


def test_gradient_is_the_finite_difference_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    target = torch.randn(3, 4, dtype=torch.float64, generator=generator).softmax(1)
    weight = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    _, gradient = cross_entropy_loss(logits, target, weight)
    for flat in range(logits.numel()):
        shift = torch.zeros_like(logits)
        shift.view(-1)[flat] = 1e-6
        higher, _ = cross_entropy_loss(logits + shift, target, weight)
        lower, _ = cross_entropy_loss(logits - shift, target, weight)
        torch.testing.assert_close(gradient.view(-1)[flat], (higher - lower) / 2e-6, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("wrong", ["r_t", "discount_t", "probability_t", "atoms"])
def test_projection_broadcasts_nothing(wrong: str) -> None:
    given: dict[str, Tensor] = {
        "r_t": torch.ones(2),
        "discount_t": torch.ones(2),
        "probability_t": torch.ones(2, 3) / 3,
        "atoms": ATOMS,
    }
    given[wrong] = given[wrong].unsqueeze(-1)
    with pytest.raises(ValueError, match="has shape"):
        categorical_target(**given)
    if wrong != "atoms":
        with pytest.raises(ValueError, match="has shape"):
            categorical_target(**{**given, wrong: given[wrong].squeeze(-1)[:1]})


def test_the_loss_broadcasts_nothing() -> None:
    rows, weight = torch.ones(2, 3), torch.ones(2)
    for logits, target, weights in [
        (rows[:1], rows, weight),
        (rows, rows[:1], weight),
        (rows, rows[:, :1], weight),
        (rows, rows, weight.unsqueeze(1)),
        (rows, rows, weight[:1]),
    ]:
        with pytest.raises(ValueError, match="has shape"):
            cross_entropy_loss(logits, target, weights)
