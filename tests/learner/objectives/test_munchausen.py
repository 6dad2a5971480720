"""Munchausen targets against their definition, in loops in float64, and at values that expose mistakes.

Tests learner/objectives/q_head.py, too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig, NetworkSpec
from learner.loop import Learner
from learner.objectives.fit import Outputs
from learner.objectives.heads import make_head
from learner.objectives.munchausen import (
    Munchausen,
    munchausen_bonus,
    munchausen_target,
    scaled_log_policy,
    soft_outputs,
)
from learner.objectives.q_learning import q_learning_target

SETTINGS = Munchausen(alpha=0.9, temperature=0.5, clip=-1.0)


def log_policy_in_loops(q: list[float], allowed: list[bool], tau: float) -> list[float]:
    """ln pi of softmax(q / tau) over the allowed actions, by its definition."""
    total = math.fsum(math.exp(value / tau) for value, open_ in zip(q, allowed, strict=True) if open_)
    return [
        math.log(math.exp(value / tau) / total) if open_ else -math.inf
        for value, open_ in zip(q, allowed, strict=True)
    ]


def target_in_loops(batch: Batch, q_tm1: Tensor, q_t: Tensor, outputs_t: Tensor, m: Munchausen) -> Tensor:
    """Equation 1 of the paper for each transition, quantile and action in turn."""
    assert batch.allowed_tm1 is not None
    assert batch.allowed_t is not None
    target = torch.zeros(len(q_t), outputs_t.shape[2], dtype=torch.float64)
    for b in range(len(q_t)):
        taken = log_policy_in_loops(q_tm1[b].tolist(), batch.allowed_tm1[b].tolist(), m.temperature)
        bonus = m.alpha * min(0.0, max(m.clip, m.temperature * taken[int(batch.a_tm1[b])]))
        log_policy = log_policy_in_loops(q_t[b].tolist(), batch.allowed_t[b].tolist(), m.temperature)
        for n in range(outputs_t.shape[2]):
            soft = math.fsum(
                math.exp(log_pi) * (float(outputs_t[b, a, n]) - m.temperature * log_pi)
                for a, log_pi in enumerate(log_policy)
                if log_pi > -math.inf
            )
            target[b, n] = float(batch.r_t[b]) + bonus + float(batch.discount_t[b]) * soft
    return target


def batch_of(r_t: Tensor, discount_t: Tensor, a_tm1: Tensor, allowed_tm1: Any, allowed_t: Any) -> Batch:
    nothing = torch.zeros(len(r_t), 1)
    return Batch(nothing, a_tm1, r_t, discount_t, nothing, torch.ones_like(r_t), allowed_tm1, allowed_t)


def test_bonus_and_soft_value_by_hand() -> None:
    # q / tau = (2, 0): ln sum exp = 2.126928, tau ln pi = (-0.063464, -1.063464), soft value 1.063464.
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    bonus = munchausen_bonus(q, torch.tensor([0, 1]), None, SETTINGS)
    # Clipped to [-1, 0] before the factor 0.9. With ln pi clipped, then times tau, it were -0.45; with the
    # clip after the factor, -0.957.
    torch.testing.assert_close(bonus, torch.tensor([0.9 * -0.063464, -0.9]), rtol=0, atol=1e-6)
    soft = soft_outputs(q.unsqueeze(2), q, None, 0.5)
    torch.testing.assert_close(soft, torch.full((2, 1), 1.063464), rtol=0, atol=1e-6)
    # Quantiles are weighted by the policy of the values, not of their own: pi(0) = 0.880797.
    quantiles = torch.tensor([[[0.0, 2.0], [4.0, -4.0]]])
    expected = torch.tensor([[0.119203 * 4.0, 0.880797 * 2.0 - 0.119203 * 4.0]]) + 0.5 * 0.365334
    torch.testing.assert_close(soft_outputs(quantiles, q[:1], None, 0.5), expected, rtol=0, atol=1e-5)


def test_large_values_over_a_small_temperature_stay_finite() -> None:
    # exp(1e4 / 0.03) overflows, and probabilities of the others are 0: 0 ln 0 must be 0.
    q = torch.tensor([[1e4, 0.0, -1e4]])
    settings = Munchausen(0.9, 0.03, -1.0)
    assert munchausen_bonus(q, torch.tensor([0]), None, settings).tolist() == [0.0]
    torch.testing.assert_close(munchausen_bonus(q, torch.tensor([2]), None, settings), torch.tensor([-0.9]))
    assert soft_outputs(q.unsqueeze(2), q, None, 0.03).tolist() == [[1e4]]
    same = torch.full((1, 2), 3e4)
    expected = torch.full((1, 2), -0.03 * math.log(2.0))
    torch.testing.assert_close(scaled_log_policy(same, None, 0.03), expected)


def test_masked_actions_have_no_part_in_the_policy() -> None:
    q = torch.tensor([[9.0, 1.0, 0.0]])
    allowed = torch.tensor([[False, True, True]])
    torch.testing.assert_close(
        scaled_log_policy(q, allowed, 0.5)[:, 1:], scaled_log_policy(q[:, 1:], None, 0.5)
    )
    soft = soft_outputs(q.unsqueeze(2), q, allowed, 0.5)
    torch.testing.assert_close(soft, torch.tensor([[1.063464]]), rtol=0, atol=1e-6)
    # The observation at the start has a mask of its own.
    free, masked = (munchausen_bonus(q, torch.tensor([1]), mask, SETTINGS) for mask in (None, allowed))
    assert free.item() == pytest.approx(-0.9)
    assert masked.item() == pytest.approx(0.9 * -0.063464, abs=1e-6)


def test_a_state_that_allows_nothing_gives_a_terminal_transition_its_reward() -> None:
    q = torch.tensor([[2.0, 2.0]])
    batch = batch_of(
        torch.tensor([3.0]),
        torch.tensor([0.0]),
        torch.tensor([0]),
        torch.tensor([[True, False]]),
        torch.tensor([[False, False]]),
    )
    assert munchausen_target(batch, q, q, q.unsqueeze(2), SETTINGS).tolist() == [[3.0]]


def test_nan_in_nan_out() -> None:
    q = torch.tensor([[math.nan, 1.0]])
    assert soft_outputs(q.unsqueeze(2), q, None, 0.5).isnan().all()
    assert munchausen_bonus(q, torch.tensor([1]), None, SETTINGS).isnan().all()


@given(
    seed=st.integers(0, 2**31),
    batch_size=st.integers(1, 4),
    num_actions=st.integers(1, 5),
    num_quantiles=st.integers(1, 4),
    alpha=st.sampled_from([0.0, 0.5, 0.9]),
    temperature=st.sampled_from([0.03, 0.5, 2.0]),
    clip=st.sampled_from([-1.0, -0.1]),
)
def test_target_is_the_sum_of_its_definition(
    seed: int,
    batch_size: int,
    num_actions: int,
    num_quantiles: int,
    alpha: float,
    temperature: float,
    clip: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    q_tm1, q_t = normal(batch_size, num_actions), normal(batch_size, num_actions)
    outputs_t = normal(batch_size, num_actions, num_quantiles)
    allowed_tm1, allowed_t = torch.rand(2, batch_size, num_actions, generator=generator) < 0.6
    a_tm1 = torch.randint(num_actions, (batch_size,), generator=generator)
    allowed_tm1[torch.arange(batch_size), a_tm1] = True
    allowed_t[:, 0] = True
    discount_t = torch.rand(batch_size, dtype=torch.float64, generator=generator)
    batch = batch_of(normal(batch_size), discount_t, a_tm1, allowed_tm1, allowed_t)
    settings = Munchausen(alpha, temperature, clip)
    target = munchausen_target(batch, q_tm1, q_t, outputs_t, settings)
    expected = target_in_loops(batch, q_tm1, q_t, outputs_t, settings)
    torch.testing.assert_close(target, expected, rtol=1e-9, atol=1e-9)


def test_a_cold_policy_without_bonus_is_q_learning() -> None:
    q_tm1, q_t = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    r_t, discount_t = torch.randn(6), torch.rand(6)
    allowed_t = torch.rand(6, 3) < 0.5
    allowed_t[:, 1] = True
    batch = batch_of(r_t, discount_t, torch.zeros(6, dtype=torch.int64), None, allowed_t)
    target = munchausen_target(batch, q_tm1, q_t, q_t.unsqueeze(2), Munchausen(0.0, 1e-4, -1.0))
    torch.testing.assert_close(target[:, 0], q_learning_target(r_t, discount_t, q_t, allowed_t))


def test_nothing_is_broadcast() -> None:
    q, actions = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    for wrong in (
        lambda: munchausen_bonus(q[:1], actions, None, SETTINGS),
        lambda: munchausen_bonus(q, actions, torch.ones(2, 2, dtype=torch.bool), SETTINGS),
        lambda: soft_outputs(q.unsqueeze(2), q[:, :2], None, 0.5),
        lambda: soft_outputs(q.unsqueeze(2), q, torch.ones(1, 3, dtype=torch.bool), 0.5),
    ):
        with pytest.raises(ValueError, match="has shape"):
            wrong()


@pytest.mark.parametrize("head", ["q", "qr", "iqn"])
def test_every_head_fits_this_target(head: Any) -> None:
    """The values that choose are the target network's, as means over the quantiles that choose."""
    generator = torch.Generator().manual_seed(3)
    shape = (5, 3) if head == "q" else (5, 3, 4)
    tm1, outputs_t, choosing, policy_tm1 = torch.randn(4, *shape, generator=generator)
    allowed_tm1, allowed_t = torch.rand(2, 5, 3, generator=generator) < 0.6
    a_tm1 = torch.randint(3, (5,), generator=generator)
    allowed_tm1[torch.arange(5), a_tm1] = True
    allowed_t[:, 2] = True
    batch = batch_of(torch.randn(5), torch.rand(5), a_tm1, allowed_tm1, allowed_t)
    config = LearnerConfig(head=head, munchausen=True, munchausen_temperature=0.5, num_atoms=4)
    implicit = {"choosing": choosing, "fractions": torch.rand(5, 4)} if head == "iqn" else {}
    fit = make_head(config, torch.device("cpu")).fit(
        batch, Outputs(tm1, outputs_t, policy_tm1=policy_tm1, **implicit)
    )
    if head == "q":
        expected = target_in_loops(batch, policy_tm1, outputs_t, outputs_t.unsqueeze(2), SETTINGS)
    else:
        means = (choosing if head == "iqn" else outputs_t).mean(dim=2)
        expected = target_in_loops(batch, policy_tm1.mean(dim=2), means, outputs_t, SETTINGS)
    torch.testing.assert_close(fit.target, expected.mean(dim=1).float(), rtol=1e-5, atol=1e-5)


def test_a_bandit_ends_at_the_fixed_point(list_source: Any, table_minibatch: Any) -> None:
    """Both end the episode and pay 0 and 0.02: Q(a) = r(a) + alpha (Q(a) - tau ln sum exp(Q / tau))."""
    config = LearnerConfig(
        munchausen=True,
        optimizer="sgd",
        learning_rate=0.5,
        max_grad_norm=None,
        target_update_updates=1,
    )
    source = list_source([table_minibatch([(0, 0, 0.0, 0.0, 0), (0, 1, 0.02, 0.0, 0)])])
    _, flat = Learner(config, NetworkSpec((), "int64", 1, 2, stack=1), source, seed=0, threads=1).learn(2000)
    q, rewards = np.zeros(2), np.array([0.0, 0.02])
    for _ in range(5000):
        q = rewards + 0.9 * np.clip(q - 0.03 * np.log(np.exp(q / 0.03).sum()), -1.0, 0.0)
    np.testing.assert_allclose(flat, q, atol=1e-4)
    # The gap between actions grows tenfold, by 1 / (1 - alpha): what the bonus is for.
    assert flat[1] - flat[0] == pytest.approx(0.2, abs=0.001)
