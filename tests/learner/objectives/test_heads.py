"""Heads inside the update step, against the same thing written out with autograd and loops.

Tests learner/objectives/fit.py, too, the result of every head, and learner/passes.py, which computes the
outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from learner.batch import Batch, to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.core import LearnerState
from learner.loop import Learner
from learner.networks.build import build_network
from learner.networks.noisy import redraw_noise
from learner.objectives.categorical import categorical_target, support
from learner.objectives.fit import Outputs
from learner.objectives.heads import make_head
from learner.objectives.quantile import quantile_huber_loss
from learner.update import UpdateStep
from replay_service.messages import Minibatch

VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)


BANDIT = NetworkSpec((), "int64", 1, 2, stack=1)


CPU = torch.device("cpu")


N = 7


def expected_loss(
    config: LearnerConfig,
    batch: Batch,
    tm1: Tensor,
    target: Tensor,
    choosing: Tensor,
    fractions: Tensor | None = None,
) -> tuple[Tensor, list[float]]:
    """The loss by its definition, one transition after the other, and the TD errors of the means.

    Outputs are [B, A, N]. tm1 and target are at the fractions, choosing is at fixed ones.
    """
    atoms = support(config.value_range, N)
    losses, errors = [], []
    for row in range(len(tm1)):
        r_t, discount_t = batch.r_t[row : row + 1], batch.discount_t[row : row + 1]
        if config.head == "c51":
            a_t = int((choosing[row].softmax(1) @ atoms).argmax())
            y = categorical_target(r_t, discount_t, target[row, a_t].softmax(0).unsqueeze(0), atoms)
            chances = tm1[row, batch.a_tm1[row]].softmax(0)
            losses.append(batch.weight[row] * -(y[0] * chances.log()).sum())
            errors.append(abs(float(y[0] @ atoms - chances.detach() @ atoms)))
        else:
            a_t = int(choosing[row].mean(1).argmax())
            y = r_t + discount_t * target[row : row + 1, a_t]
            quantiles = tm1[row, batch.a_tm1[row]].unsqueeze(0)
            at = None if fractions is None else fractions[row : row + 1]
            weight = batch.weight[row : row + 1]
            losses.append(quantile_huber_loss(quantiles, y, weight, config.huber_delta, at)[0])
            errors.append(abs(float(y.mean() - quantiles.detach().mean())))
    return torch.stack(losses).mean(), errors


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("head", ["c51", "qr", "iqn"])
@pytest.mark.parametrize("switches", [{}, {"dueling": True, "noisy": True, "layer_norm": True}], ids=str)
def test_sgd_moves_weights_by_the_gradient_of_the_definition(
    head: Any, double: bool, switches: dict[str, bool], random_minibatch: Callable[..., Minibatch]
) -> None:
    config = LearnerConfig(
        head=head,
        double=double,
        num_atoms=N,
        iqn_quantiles=5,
        iqn_target_quantiles=4,
        iqn_acting_quantiles=6,
        value_range=(-3.0, 2.0),
        huber_delta=0.5,
        hidden_sizes=(16, 16),
        optimizer="sgd",
        learning_rate=0.1,
        max_grad_norm=None,
        **switches,  # type: ignore[arg-type]
    )
    step = UpdateStep(VECTOR, config, seed=1)
    state = step.state()
    rng = np.random.default_rng(2)
    old, target_weights = (
        (state.tensors[name] + rng.normal(0, 0.3, state.tensors[name].size)).astype(np.float32)
        for name in ("online", "target")
    )
    step.restore(LearnerState(0, {**state.tensors, "online": old, "target": target_weights}))
    batch = to_batch(random_minibatch(VECTOR, 16), 1, CPU)

    online, target = build_network(VECTOR, config), build_network(VECTOR, config)
    vector_to_parameters(torch.from_numpy(old.copy()), online.parameters())
    vector_to_parameters(torch.from_numpy(target_weights.copy()), target.parameters())
    noise = torch.Generator().manual_seed(1)
    redraw_noise(online, noise)
    redraw_noise(target, noise)
    fractions = [torch.rand(16, count, generator=noise) for count in (5, 4)] if head == "iqn" else []
    with torch.no_grad():
        outputs_t, choosing = target(batch.obs_t, *fractions[1:]), (online if double else target)(batch.obs_t)
    outputs_tm1 = online(batch.obs_tm1, *fractions[:1])
    loss, errors = expected_loss(config, batch, outputs_tm1, outputs_t, choosing, *fractions[:1])
    gradients = torch.autograd.grad(loss, list(online.parameters()))
    gradient = torch.cat([piece.flatten() for piece in gradients]).numpy()

    td_errors = step(batch)

    np.testing.assert_allclose(td_errors, errors, rtol=1e-4, atol=1e-5)
    moved = step.weights() - old
    assert np.abs(moved + 0.1 * gradient).max() < 1e-4 * np.abs(0.1 * gradient).max() + 3e-7
    metrics = step.take_metrics()
    assert metrics.loss_mean == pytest.approx(loss.item(), rel=1e-4)
    assert metrics.grad_norm_mean == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-4)
    assert metrics.td_error_mean == pytest.approx(float(np.mean(errors)), rel=1e-4)
    assert abs(metrics.target_mean - metrics.q_mean) <= metrics.td_error_mean + 1e-5


def test_double_choice_differs_from_single_in_what_it_is_tested_on(
    random_minibatch: Callable[..., Minibatch],
) -> None:
    batch = to_batch(random_minibatch(VECTOR, 16), 1, CPU)
    for name in ("c51", "qr"):
        head = make_head(LearnerConfig(head=name, num_atoms=N), CPU)  # type: ignore[arg-type]
        tm1, outputs_t, choosing = torch.randn(3, 16, 3, N, generator=torch.Generator().manual_seed(0))
        single, double = (head.fit(batch, Outputs(tm1, outputs_t, other)) for other in (None, choosing))
        assert not torch.equal(single.target, double.target)
        own = head.fit(batch, Outputs(tm1, outputs_t, outputs_t))
        assert torch.equal(single.target, own.target)
        # Actions not taken have no gradient.
        taken = single.output_gradient.abs().sum(2).argmax(1)
        assert torch.equal(taken, batch.a_tm1)
        assert (single.output_gradient.abs().sum(2) > 0).sum() == 16


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
        batch, Outputs(torch.zeros_like(outputs_t), outputs_t, outputs_t if double else None)
    )
    assert support((-1.0, 1.0), 3).tolist() == [-1.0, 0.0, 1.0]
    torch.testing.assert_close(fit.target, torch.tensor([0.25]), rtol=0, atol=1e-5)


def bandit_minibatch(rewards: np.ndarray, make: Callable[..., Minibatch]) -> Minibatch:
    """Action 1 pays each reward in turn and ends the episode; action 0 is never tried."""
    return make([(0, 1, float(reward), 0.0, 0) for reward in rewards])


def test_c51_learns_the_chances_of_a_bandit(list_source: Any, table_minibatch: Any) -> None:
    # Cross entropy is least where the prediction is the distribution itself.
    config = LearnerConfig(
        head="c51", num_atoms=3, value_range=(0, 2), optimizer="sgd", learning_rate=2.0, max_grad_norm=None
    )
    source = list_source([bandit_minibatch(np.array([0, 1, 1, 2, 2, 2, 2, 2]), table_minibatch)])
    report, flat = Learner(config, BANDIT, source, seed=0, threads=1).learn(200)
    chances = torch.tensor(flat).view(2, 3).softmax(1)
    np.testing.assert_allclose(chances[1], [1 / 8, 2 / 8, 5 / 8], atol=1e-4)
    np.testing.assert_allclose(chances[0], [1 / 3] * 3, atol=1e-6)
    assert report.target_mean == pytest.approx(1.5)


def test_qr_learns_the_quantiles_of_a_bandit(list_source: Any, table_minibatch: Any) -> None:
    config = LearnerConfig(
        head="qr", num_atoms=2, huber_delta=0.01, optimizer="sgd", learning_rate=0.05, max_grad_norm=None
    )
    # Quantiles 1/4 and 3/4 of {0, 0, 4, 8, 8}: 0 and 8.
    source = list_source([bandit_minibatch(np.array([0, 0, 4, 8, 8]), table_minibatch)])
    _, flat = Learner(config, BANDIT, source, seed=0, threads=1).learn(1500)
    np.testing.assert_allclose(flat, [0.0, 0.0, 0.0, 8.0], atol=0.05)


CONSTANT = NetworkSpec((1,), "float32", None, 1, stack=1)


def test_iqn_learns_the_quantile_function_of_a_bandit(list_source: Any, random_minibatch: Any) -> None:
    """Rewards uniform on [0, 8] have the quantile 8 tau at tau."""
    config = LearnerConfig(
        network="mlp",
        head="iqn",
        huber_delta=0.1,
        iqn_cosines=16,
        iqn_quantiles=16,
        iqn_acting_quantiles=4,
        hidden_sizes=(32, 32),
        learning_rate=1e-2,
        learning_rate_end=1e-4,
        learning_rate_decay_updates=400,
    )
    rng = np.random.default_rng(0)
    made = random_minibatch(CONSTANT, 256)
    ones = {"observation": np.ones_like(made.windows["observation"])}
    minibatches = [
        replace(
            made,
            windows=ones,
            reward=rng.uniform(0.0, 8.0, 256).astype(np.float32),
            discount=np.zeros(256, np.float32),
            weight=np.ones(256, np.float32),
        )
        for _ in range(50)
    ]
    _, flat = Learner(config, CONSTANT, list_source(minibatches), seed=0, threads=1).learn(400)
    network = build_network(CONSTANT, config)
    vector_to_parameters(torch.tensor(flat), network.parameters())
    np.testing.assert_allclose(network(torch.ones(1, 1)).detach()[0, 0], [1.0, 3.0, 5.0, 7.0], atol=0.5)
    sharp = network(torch.ones(1, 1), torch.tensor([[0.0625, 0.9375]])).detach()[0, 0]
    np.testing.assert_allclose(sharp, [0.5, 7.5], atol=0.5)
