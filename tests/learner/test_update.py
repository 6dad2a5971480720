from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import vector_to_parameters

from learner import update as update_module
from learner.batch import observations, to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.core import LearnerState
from learner.networks.build import build_network
from learner.objectives.losses import td_loss
from learner.objectives.targets import double_q_target, q_learning_target, tabular_backup
from learner.update import UpdateStep, resolve_device
from replay_service.messages import Minibatch

MinibatchMaker = Callable[..., Minibatch]

VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)
STACKED = NetworkSpec((2, 4), "float32", None, 3, stack=2)
IMAGES = NetworkSpec((2, 36, 36), "uint8", None, 3, stack=2)
TABLE = NetworkSpec((), "int64", 5, 3, stack=1)


def run(step: UpdateStep, spec: NetworkSpec, minibatch: Minibatch) -> np.ndarray:
    return step(to_batch(minibatch, spec.stack, step.device))


def table_step(table: np.ndarray, config: LearnerConfig, target: np.ndarray | None = None) -> UpdateStep:
    step = UpdateStep(NetworkSpec((), "int64", table.shape[0], table.shape[1], stack=1), config, seed=0)
    online = table.astype(np.float32).ravel()
    following = online if target is None else target.astype(np.float32).ravel()
    step.restore(LearnerState(0, {"online": online, "target": following}))
    return step


def test_observations_are_the_ends_of_a_window() -> None:
    window = np.arange(2 * 3).reshape(2, 3)
    assert [part.tolist() for part in observations(window, 2)] == [[[0, 1], [3, 4]], [[1, 2], [4, 5]]]
    assert [part.tolist() for part in observations(window[:, :2], 1)] == [[0, 3], [1, 4]]
    images = np.zeros((5, 8, 36, 40), np.uint8)  # n-step rows of 4-frame stacks
    assert [part.shape for part in observations(images, 4)] == [(5, 4, 36, 40)] * 2
    assert observations(images, 4)[0].base is not None


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "spec", [VECTOR, STACKED, IMAGES, TABLE], ids=["vector", "stacked", "images", "table"]
)
def test_sgd_moves_weights_by_the_gradient_of_the_pure_functions(
    spec: NetworkSpec, double: bool, loss: Any, random_minibatch: MinibatchMaker
) -> None:
    config = LearnerConfig(
        loss=loss, huber_delta=0.5, double=double, optimizer="sgd", learning_rate=0.1, max_grad_norm=None
    )
    step = UpdateStep(spec, config, seed=1)
    state = step.state()
    rng = np.random.default_rng(2)
    old, target_weights = (
        (state.tensors[name] + rng.normal(0, 0.05, state.tensors[name].size)).astype(np.float32)
        for name in ("online", "target")
    )
    step.restore(LearnerState(0, {"online": old, "target": target_weights}))
    minibatch = random_minibatch(spec, 8)

    batch = to_batch(minibatch, spec.stack, torch.device("cpu"))
    online, target = build_network(spec, config), build_network(spec, config)
    vector_to_parameters(torch.from_numpy(old.copy()), online.parameters())
    vector_to_parameters(torch.from_numpy(target_weights.copy()), target.parameters())
    with torch.no_grad():
        q_t, q_t_online = target(batch.obs_t), online(batch.obs_t)
        if double:
            y = double_q_target(batch.r_t, batch.discount_t, q_t_online, q_t)
        else:
            y = q_learning_target(batch.r_t, batch.discount_t, q_t)
    td = y - online(batch.obs_tm1)[torch.arange(8), batch.a_tm1]
    loss_value = td_loss(config).value(td, batch.weight)
    gradients = torch.autograd.grad(loss_value, list(online.parameters()))
    gradient = torch.cat([piece.flatten() for piece in gradients]).numpy()

    td_errors = run(step, spec, minibatch)

    moved = step.weights() - old
    assert np.abs(moved + 0.1 * gradient).max() < 1e-4 * np.abs(0.1 * gradient).max() + 1e-7
    np.testing.assert_allclose(td_errors, td.detach().abs(), rtol=1e-4, atol=1e-6)
    assert td_errors.dtype == np.float32
    means = step.take_means()
    assert means.loss == pytest.approx(loss_value.item(), rel=1e-4)
    assert means.grad_norm == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-4)
    assert means.target == pytest.approx(float(y.mean()), rel=1e-4, abs=1e-6)
    assert means.q == pytest.approx((y - td).mean().item(), rel=1e-4, abs=1e-6)
    assert means.td_error == pytest.approx(td.abs().mean().item(), rel=1e-4)


def test_table_under_sgd_is_the_tabular_backup_bit_for_bit(table_minibatch: MinibatchMaker) -> None:
    # The gradient of mean td^2 is -2 td / B, so a rate of alpha B / 2 moves each entry by alpha td. With
    # alpha and B powers of two the scaling rounds nothing, so that the two ways agree in every bit.
    alpha, rows = 0.5, [(0, 1, 1.0, 0.99, 2), (1, 0, -0.3, 0.97, 0), (2, 2, 0.7, 0.0, 1), (3, 1, 2.0, 0.9, 3)]
    table = np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)
    config = LearnerConfig(optimizer="sgd", learning_rate=alpha * len(rows) / 2, max_grad_norm=None)
    step = table_step(table, config)
    run(step, TABLE, table_minibatch(rows))
    # Every row backs up from the old table, which is what the target network still holds.
    expected = torch.from_numpy(table.copy())
    for s_tm1, a_tm1, r_t, discount_t, s_t in rows:
        one = tabular_backup(torch.from_numpy(table), s_tm1, a_tm1, r_t, discount_t, s_t, alpha)
        expected[s_tm1, a_tm1] = one[s_tm1, a_tm1]
    np.testing.assert_array_equal(step.weights().reshape(4, 3), expected)
    assert (step.weights().reshape(4, 3) != table).sum() == 4


def test_terminal_rows_do_not_bootstrap_and_truncated_rows_do(table_minibatch: MinibatchMaker) -> None:
    table = np.array([[0.0, 0.0], [50.0, 60.0]])
    config = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=None)  # alpha 1 for B = 2
    step = table_step(table, config)
    td_errors = run(step, TABLE, table_minibatch([(0, 0, 1.0, 0.0, 1), (0, 1, 1.0, 0.5, 1)]))
    np.testing.assert_allclose(td_errors, [1.0, 31.0])
    np.testing.assert_allclose(step.weights(), [1.0, 31.0, 50.0, 60.0])


def test_single_q_ignores_and_double_q_follows_the_online_choice(table_minibatch: MinibatchMaker) -> None:
    online, target = np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([[0.0, 0.0], [10.0, 20.0]])
    rows = table_minibatch([(0, 0, 0.0, 0.5, 1)])
    for double, td_error in [(False, 10.0), (True, 5.0)]:
        step = table_step(online, LearnerConfig(optimizer="sgd", double=double), target)
        np.testing.assert_allclose(run(step, TABLE, rows), [td_error])


def test_importance_weights_scale_the_change_and_not_the_td_error(table_minibatch: MinibatchMaker) -> None:
    config = LearnerConfig(optimizer="sgd", learning_rate=1.5, max_grad_norm=None)  # alpha 1 for B = 3
    step = table_step(np.zeros((3, 1)), config)
    rows = [(state, 0, 8.0, 0.0, 0) for state in range(3)]
    td_errors = run(step, TABLE, table_minibatch(rows, weight=[1.0, 0.25, 0.0]))
    np.testing.assert_allclose(td_errors, [8.0, 8.0, 8.0])
    np.testing.assert_allclose(step.weights(), [8.0, 2.0, 0.0])


def test_clipping_bounds_the_step_and_the_norm_is_from_before(table_minibatch: MinibatchMaker) -> None:
    step = table_step(np.zeros((2, 1)), LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.5))
    # Gradients -2 * td / B are -3 and -4: norm 5, a tenth of which is left.
    run(step, TABLE, table_minibatch([(0, 0, 3.0, 0.0, 0), (1, 0, 4.0, 0.0, 0)]))
    np.testing.assert_allclose(step.weights(), [0.3, 0.4], rtol=1e-6)
    assert step.take_means().grad_norm == pytest.approx(5.0)


@pytest.mark.parametrize("spec", [VECTOR, TABLE], ids=["vector", "table"])
def test_target_stays_put_between_its_copies(spec: NetworkSpec, random_minibatch: MinibatchMaker) -> None:
    step = UpdateStep(spec, LearnerConfig(target_update_updates=3), seed=0)
    held = step.weights()
    for update in range(1, 8):
        run(step, spec, random_minibatch(spec, 16, seed=update))
        assert not np.array_equal(step.weights(), held)
        if update % 3 == 0:
            held = step.weights()
        np.testing.assert_array_equal(step.state().tensors["target"], held)


def test_polyak_target_moves_its_share_each_update(random_minibatch: MinibatchMaker) -> None:
    step = UpdateStep(VECTOR, LearnerConfig(target_polyak=0.25, target_update_updates=1), seed=0)
    target = step.weights()
    for update in range(3):
        run(step, VECTOR, random_minibatch(VECTOR, 16, seed=update))
        target = target + 0.25 * (step.weights() - target)
        np.testing.assert_allclose(step.state().tensors["target"], target, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("held", [1, 2, 64])
def test_means_are_over_the_updates_since_the_last_reading(
    held: int, table_minibatch: MinibatchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_module, "_HELD_UPDATES", held)
    config = LearnerConfig(optimizer="sgd", learning_rate=1e-30, max_grad_norm=3.0)
    step = table_step(np.zeros((2, 1)), config)
    for reward in (100.0, 2.0, 4.0, 3.0):
        run(step, TABLE, table_minibatch([(0, 0, reward, 0.0, 0), (1, 0, -reward, 0.0, 0)]))
        if reward == 100.0:
            assert step.take_means().td_error == pytest.approx(100.0)
    means = step.take_means()
    assert (means.loss, means.td_error, means.target) == pytest.approx((29 / 3, 3.0, 0.0))
    assert means.loss_max == pytest.approx(16.0)
    # The loss's gradients by the two values are -reward and reward: norms of sqrt(2) |reward|.
    assert means.grad_norm == pytest.approx(2**0.5 * 3.0)
    assert means.grad_norm_clipped == pytest.approx((2**0.5 * 2.0 + 3.0 + 3.0) / 3)


def test_what_is_handed_out_is_never_written_again(random_minibatch: MinibatchMaker) -> None:
    step = UpdateStep(VECTOR, LearnerConfig(), seed=0)
    held = [run(step, VECTOR, random_minibatch(VECTOR, 4)), step.weights(), *step.state().tensors.values()]
    before = [array.copy() for array in held]
    held[0] += 1.0  # the source may do as it likes with the TD errors
    before[0] += 1.0
    for seed in range(3):
        run(step, VECTOR, random_minibatch(VECTOR, 4, seed))
    assert all(np.array_equal(array, copy) for array, copy in zip(held, before, strict=True))


def test_a_wrong_state_is_refused() -> None:
    adam = UpdateStep(VECTOR, LearnerConfig(), seed=0)
    sgd = UpdateStep(VECTOR, LearnerConfig(optimizer="sgd"), seed=0)
    small = UpdateStep(VECTOR, LearnerConfig(hidden_sizes=(3,)), seed=0)
    for other in (sgd, small):
        with pytest.raises(ValueError, match="this configuration needs"):
            adam.restore(other.state())


def test_an_action_out_of_range_raises(table_minibatch: MinibatchMaker) -> None:
    step = table_step(np.zeros((2, 2)), LearnerConfig(optimizer="sgd"))
    with pytest.raises(RuntimeError, match="out of bounds"):
        run(step, TABLE, table_minibatch([(0, 2, 1.0, 0.0, 0)]))


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="give auto, cpu or cuda"):
        resolve_device("abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device"):
        resolve_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", [VECTOR, IMAGES, TABLE], ids=["vector", "images", "table"])
def test_cuda_learns_what_the_cpu_learns(spec: NetworkSpec, random_minibatch: MinibatchMaker) -> None:
    cpu, cuda = (
        UpdateStep(spec, LearnerConfig(device=name, double=True), seed=0) for name in ("cpu", "cuda")
    )
    np.testing.assert_array_equal(cpu.weights(), cuda.weights())
    for seed in range(5):
        minibatch = random_minibatch(spec, 16, seed)
        np.testing.assert_allclose(
            run(cpu, spec, minibatch), run(cuda, spec, minibatch), rtol=1e-2, atol=1e-3
        )
