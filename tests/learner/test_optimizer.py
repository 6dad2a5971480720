from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig
from learner.networks.build import Mlp
from learner.networks.flat import FlatNetwork
from learner.optimizer import FlatOptimizer, LearningRate, clip_


@pytest.mark.parametrize("may_read", [True, False])
def test_clipping_by_hand(may_read: bool) -> None:
    gradient = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(clip_(gradient, 2.5, may_read=may_read), torch.tensor(5.0))
    torch.testing.assert_close(gradient, torch.tensor([1.5, 2.0]))


@pytest.mark.parametrize("may_read", [True, False])
@pytest.mark.parametrize("max_norm", [None, 5.1, 1e9])
def test_a_gradient_within_bounds_keeps_every_bit(max_norm: float | None, may_read: bool) -> None:
    for gradient in (torch.tensor([3.0, 4.0]), torch.zeros(2), torch.tensor([0.1, 1e-30])):
        before = gradient.clone()
        clip_(gradient, max_norm, may_read=may_read)
        assert torch.equal(gradient, before)


def test_learning_rate_falls_in_a_line_and_stays_down() -> None:
    config = LearnerConfig(learning_rate=1.0, learning_rate_end=0.2, learning_rate_decay_updates=4)
    rates = [LearningRate(config).of(update) for update in (0, 1, 2, 4, 100)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])
    assert LearningRate(LearnerConfig(learning_rate=0.5)).of(10**6) == 0.5


def adam_by_hand(weights: np.ndarray, gradients: np.ndarray, config: LearnerConfig) -> np.ndarray:
    """Algorithm 1 of arXiv:1412.6980, with the clipping and the decays before it, in float64."""
    w, m, v = weights.astype(np.float64), 0.0, 0.0
    for update, g in enumerate(gradients.astype(np.float64)):
        if config.max_grad_norm is not None:
            g = g * min(1.0, config.max_grad_norm / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        m_hat, v_hat = m / (1 - 0.9 ** (update + 1)), v / (1 - 0.999 ** (update + 1))
        rate = LearningRate(config).of(update)
        w = w * (1.0 - rate * config.weight_decay)
        w = w - rate * m_hat / (np.sqrt(v_hat) + config.adam_epsilon)
    return w


@pytest.mark.parametrize("weight_decay", [0.0, 3.0])
def test_adam_is_the_paper_s_algorithm(weight_decay: float) -> None:
    config = LearnerConfig(
        optimizer="adamw" if weight_decay else "adam",
        weight_decay=weight_decay,
        learning_rate=1e-2,
        learning_rate_decay_updates=8,
        adam_epsilon=1e-3,
        max_grad_norm=2.0,
    )
    flat = FlatNetwork(Mlp((2, 3, 2)), torch.device("cpu"))
    optimizer = FlatOptimizer(flat, config)
    start = flat.weights.numpy().copy()
    scales = np.array([[0.01], [5.0], [1.0], [0.1], [3.0], [0.5]])
    gradients = (np.random.default_rng(0).normal(size=(6, start.size)) * scales).astype(np.float32)
    for update, gradient in enumerate(gradients):
        flat.gradient.copy_(torch.from_numpy(gradient))
        assert float(clip_(flat.gradient, config.max_grad_norm, may_read=True)) == pytest.approx(
            np.linalg.norm(gradient), rel=1e-5
        )
        optimizer.step(update)
    np.testing.assert_allclose(flat.weights.numpy(), adam_by_hand(start, gradients, config), atol=1e-6)


def one_adamw_step(skip: torch.Tensor | None) -> float:
    """What is left of a weight of 8 after a step of rate 1/4 with decay 2 and gradient 0."""
    config = LearnerConfig(optimizer="adamw", weight_decay=2.0, learning_rate=0.25)
    flat = FlatNetwork(Mlp((1, 1)), torch.device("cpu"))
    flat.weights.fill_(8.0)
    optimizer = FlatOptimizer(flat, config)
    if skip is None:
        optimizer.step(0)
    else:
        optimizer.set_rate(0)
        optimizer.step_unless(skip)
    assert flat.weights[0] == flat.weights[1]  # the bias decays, too
    return float(flat.weights[0])


def test_decay_is_apart_from_the_moments() -> None:
    # As a part of the gradient (L2), Adam would take a step of the learning rate from 8: 7.75.
    assert one_adamw_step(None) == 4.0
    assert one_adamw_step(torch.tensor(0.0)) == 4.0
    assert one_adamw_step(torch.tensor(1.0)) == 8.0


def test_adamw_is_torch_s_own() -> None:
    config = LearnerConfig(optimizer="adamw", weight_decay=0.7, learning_rate=0.03, adam_epsilon=1e-5)
    flat = FlatNetwork(Mlp((2, 3, 2)), torch.device("cpu"))
    twin = torch.nn.Parameter(flat.weights.clone())
    ours = FlatOptimizer(flat, config)
    theirs = torch.optim.AdamW([twin], lr=0.03, eps=1e-5, weight_decay=0.7)
    for update, gradient in enumerate(torch.randn(5, len(flat.weights))):
        flat.gradient.copy_(gradient)
        ours.step(update)
        twin.grad = gradient
        theirs.step()
    torch.testing.assert_close(flat.weights, twin.detach(), rtol=1e-5, atol=1e-7)
