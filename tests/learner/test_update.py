"""The update step against the pure functions, and queued updates against those applied at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec
from torch import nn
from torch.nn.utils import vector_to_parameters

from learner.batch import to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.core import LearnerState
from learner.networks.build import Mlp, build_network
from learner.objectives.q_learning import double_q_target, q_learning_target, tabular_backup, td_loss
from learner.skipped_updates import SkippedUpdate
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep, prepare_device
from replay_service.messages import Minibatch

MinibatchMaker = Callable[..., Minibatch]

VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)
STACKED = NetworkSpec((2, 4), "float32", None, 3, stack=2)
IMAGES = image_spec((2, 36, 36), 3, stack=2)
TABLE = NetworkSpec((), "int64", 5, 3, stack=1)


def run(step: UpdateStep, spec: NetworkSpec, minibatch: Minibatch) -> Any:
    return step(to_batch(minibatch, spec.stack, step.device))


def table_step(table: np.ndarray, config: LearnerConfig, target: np.ndarray | None = None) -> UpdateStep:
    step = UpdateStep(NetworkSpec((), "int64", table.shape[0], table.shape[1], stack=1), config, seed=0)
    online = table.astype(np.float32).ravel()
    following = online if target is None else target.astype(np.float32).ravel()
    step.restore(LearnerState(0, {"online": online, "target": following}))
    return step


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
    loss_value, _ = td_loss(config)(td, batch.weight)
    gradients = torch.autograd.grad(loss_value, list(online.parameters()))
    gradient = torch.cat([piece.flatten() for piece in gradients]).numpy()

    td_errors = run(step, spec, minibatch)

    moved = step.weights() - old
    assert np.abs(moved + 0.1 * gradient).max() < 1e-4 * np.abs(0.1 * gradient).max() + 1e-7
    np.testing.assert_allclose(td_errors, td.detach().abs(), rtol=1e-4, atol=1e-6)
    assert td_errors.dtype == np.float32
    metrics = step.take_metrics()
    assert metrics.loss_mean == pytest.approx(loss_value.item(), rel=1e-4)
    assert metrics.grad_norm_mean == pytest.approx(float(np.linalg.norm(gradient)), rel=1e-4)
    assert metrics.target_mean == pytest.approx(float(y.mean()), rel=1e-4, abs=1e-6)
    assert metrics.q_mean == pytest.approx((y - td).mean().item(), rel=1e-4, abs=1e-6)
    assert metrics.td_error_mean == pytest.approx(td.abs().mean().item(), rel=1e-4)


def test_table_under_sgd_is_the_tabular_backup_bit_for_bit(table_minibatch: MinibatchMaker) -> None:
    # The gradient of mean td^2 is -2 td / B, so a rate of alpha B / 2 moves each entry by alpha td. With
    # alpha and B powers of two the scaling rounds nothing, so that the two ways agree in every bit.
    alpha = 0.5
    transitions = [(0, 1, 1.0, 0.99, 2), (1, 0, -0.3, 0.97, 0), (2, 2, 0.7, 0.0, 1), (3, 1, 2.0, 0.9, 3)]
    table = np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)
    config = LearnerConfig(optimizer="sgd", learning_rate=alpha * len(transitions) / 2, max_grad_norm=None)
    step = table_step(table, config)
    run(step, TABLE, table_minibatch(transitions))
    # Every transition backs up from the old table, which is what the target network still holds.
    expected = torch.from_numpy(table.copy())
    for s_tm1, a_tm1, r_t, discount_t, s_t in transitions:
        one = tabular_backup(torch.from_numpy(table), s_tm1, a_tm1, r_t, discount_t, s_t, alpha)
        expected[s_tm1, a_tm1] = one[s_tm1, a_tm1]
    np.testing.assert_array_equal(step.weights().reshape(4, 3), expected)
    assert (step.weights().reshape(4, 3) != table).sum() == 4


def test_terminal_transitions_do_not_bootstrap_and_truncated_ones_do(table_minibatch: MinibatchMaker) -> None:
    table = np.array([[0.0, 0.0], [50.0, 60.0]])
    config = LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=None)  # alpha 1 for B = 2
    step = table_step(table, config)
    td_errors = run(step, TABLE, table_minibatch([(0, 0, 1.0, 0.0, 1), (0, 1, 1.0, 0.5, 1)]))
    np.testing.assert_allclose(td_errors, [1.0, 31.0])
    np.testing.assert_allclose(step.weights(), [1.0, 31.0, 50.0, 60.0])


def test_single_q_ignores_and_double_q_follows_the_online_choice(table_minibatch: MinibatchMaker) -> None:
    online, target = np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([[0.0, 0.0], [10.0, 20.0]])
    minibatch = table_minibatch([(0, 0, 0.0, 0.5, 1)])
    for double, td_error in [(False, 10.0), (True, 5.0)]:
        step = table_step(online, LearnerConfig(optimizer="sgd", double=double), target)
        np.testing.assert_allclose(run(step, TABLE, minibatch), [td_error])


def test_importance_weights_scale_the_change_and_not_the_td_error(table_minibatch: MinibatchMaker) -> None:
    config = LearnerConfig(optimizer="sgd", learning_rate=1.5, max_grad_norm=None)  # alpha 1 for B = 3
    step = table_step(np.zeros((3, 1)), config)
    transitions = [(state, 0, 8.0, 0.0, 0) for state in range(3)]
    td_errors = run(step, TABLE, table_minibatch(transitions, weight=[1.0, 0.25, 0.0]))
    np.testing.assert_allclose(td_errors, [8.0, 8.0, 8.0])
    np.testing.assert_allclose(step.weights(), [8.0, 2.0, 0.0])


def test_clipping_bounds_the_step_and_the_norm_is_from_before(table_minibatch: MinibatchMaker) -> None:
    step = table_step(np.zeros((2, 1)), LearnerConfig(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.5))
    # Gradients -2 * td / B are -3 and -4: norm 5, a tenth of which is left.
    run(step, TABLE, table_minibatch([(0, 0, 3.0, 0.0, 0), (1, 0, 4.0, 0.0, 0)]))
    np.testing.assert_allclose(step.weights(), [0.3, 0.4], rtol=1e-6)
    assert step.take_metrics().grad_norm_mean == pytest.approx(5.0)


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


def test_target_is_copied_by_env_steps(random_minibatch: MinibatchMaker) -> None:
    # 12 env steps at 4 samples per insert are 48 samples, or 3 updates of 16.
    config = LearnerConfig(target_update_env_steps=12, batch_size=16)
    step = UpdateStep(VECTOR, config, seed=0, samples_per_insert=4.0)
    held = step.weights()
    for update in range(1, 8):
        run(step, VECTOR, random_minibatch(VECTOR, 16, seed=update))
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


def test_metrics_are_over_the_updates_since_the_last_reading(table_minibatch: MinibatchMaker) -> None:
    config = LearnerConfig(optimizer="sgd", learning_rate=1e-30, max_grad_norm=3.0)
    step = table_step(np.zeros((2, 1)), config)
    for reward in (100.0, 2.0, 4.0, 3.0):
        run(step, TABLE, table_minibatch([(0, 0, reward, 0.0, 0), (1, 0, -reward, 0.0, 0)]))
        if reward == 100.0:
            assert step.take_metrics().td_error_mean == pytest.approx(100.0)
    metrics = step.take_metrics()
    assert (metrics.loss_mean, metrics.td_error_mean, metrics.target_mean) == pytest.approx(
        (29 / 3, 3.0, 0.0)
    )
    assert metrics.loss_max == pytest.approx(16.0)
    # The loss's gradients by the two values are -reward and reward: norms of sqrt(2) |reward|.
    assert metrics.grad_norm_mean == pytest.approx(2**0.5 * 3.0)
    assert metrics.grad_norm_clipped_mean == pytest.approx((2**0.5 * 2.0 + 3.0 + 3.0) / 3)


def test_what_is_handed_out_is_never_written_again(random_minibatch: MinibatchMaker) -> None:
    step = UpdateStep(VECTOR, LearnerConfig(), seed=0)
    held = [run(step, VECTOR, random_minibatch(VECTOR, 4)), step.weights(), *step.state().tensors.values()]
    before = [array.copy() for array in held]
    held[0] += 1.0  # the source may do as it likes with the TD errors
    before[0] += 1.0
    for seed in range(3):
        run(step, VECTOR, random_minibatch(VECTOR, 4, seed))
    assert all(np.array_equal(array, copy) for array, copy in zip(held, before, strict=True))


@pytest.mark.parametrize("reward", [np.nan, np.inf])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("switches", [{}, {"head": "qr", "double": True, "dueling": True}], ids=str)
def test_a_bad_update_changes_nothing(
    reward: float, optimizer: Any, switches: dict[str, Any], random_minibatch: MinibatchMaker
) -> None:
    # With a target that moves in each update, moving it by mistake would show at once.
    step = UpdateStep(VECTOR, LearnerConfig(optimizer=optimizer, target_polyak=0.1, **switches), seed=0)
    run(step, VECTOR, random_minibatch(VECTOR, 16))
    before = step.state()
    bad = replace(random_minibatch(VECTOR, 16, seed=1), reward=np.full(16, reward, np.float32))
    assert isinstance(run(step, VECTOR, bad), SkippedUpdate)
    after = step.state()
    assert after.version == before.version
    assert all(after.tensors[name].tobytes() == array.tobytes() for name, array in before.tensors.items())


def test_updates_with_running_statistics_are_not_queued() -> None:
    config = LearnerConfig(hidden_sizes=(16,), normalize_observations=True)
    assert not UpdateStep(VECTOR, config, seed=0, queues=True).queues
    assert not UpdateStep(VECTOR, LearnerConfig(device="cpu"), seed=0).queues  # nothing to gain on a CPU


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"double": True, "dueling": True, "noisy": True, "layer_norm": True},
        {"head": "c51", "network": "impala_cnn"},
        {"head": "qr", "network": "mlp", "normalize_observations": True},
        {"head": "iqn", "noisy": True, "double": True},
        {"head": "iqn", "dueling": True, "munchausen": True},
        {"head": "q", "munchausen": True},
    ],
    ids=str,
)
def test_an_update_learns_from_all_parts_and_acting_repeats_the_network(
    switches: dict[str, Any], parts_spec: NetworkSpec, random_minibatch: MinibatchMaker
) -> None:
    config = LearnerConfig(hidden_sizes=(16, 8), **switches)
    step = UpdateStep(parts_spec, config, seed=0)
    before = step.weights()
    minibatch = random_minibatch(parts_spec, 8, width=4)
    windows = {**minibatch.windows, "action_mask": np.ones((8, 4, 3), np.bool_)}
    errors = run(step, parts_spec, replace(minibatch, windows=windows))
    assert isinstance(errors, np.ndarray)
    assert errors.shape == (8,)
    policy = TorchPolicy(parts_spec, config, threads=1)
    after = step.weights()
    assert (before != after).any()
    policy.load(after)
    windows = dict(random_minibatch(parts_spec, 4, seed=5, width=2).windows)
    fields = [(name, window.dtype, window.shape[2:]) for name, window in windows.items()]
    records = np.zeros((4, 2), np.dtype([*fields, ("action_mask", "?", (3,))], align=True))
    for name, window in windows.items():
        records[name] = window
    q = policy.q_values(records)
    assert (q.shape, q.dtype) == ((4, 3), np.float32)
    assert np.ptp(q) > 0.0
    # One observation alone has the values that it has beside others.
    np.testing.assert_allclose(policy.q_values(records[2:3]), q[2:3], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "switches", [{}, {"head": "iqn", "munchausen": True}, {"noisy": True, "optimizer": "adamw"}], ids=str
)
def test_a_state_goes_on_bit_for_bit(
    switches: dict[str, Any], parts_spec: NetworkSpec, random_minibatch: MinibatchMaker
) -> None:
    config = LearnerConfig(hidden_sizes=(16, 8), normalize_observations=True, **switches)
    minibatches = [random_minibatch(parts_spec, 8, seed=seed, width=4) for seed in range(4)]
    whole, first, second = (UpdateStep(parts_spec, config, seed=seed) for seed in (0, 0, 9))
    for minibatch in minibatches:
        run(whole, parts_spec, minibatch)
    for minibatch in minibatches[:2]:
        run(first, parts_spec, minibatch)
    second.restore(first.state())
    for minibatch in minibatches[2:]:
        run(second, parts_spec, minibatch)
    assert whole.weights().tobytes() == second.weights().tobytes()


def without_inputs(spec: NetworkSpec, config: LearnerConfig) -> nn.Module:
    """In train() mode its outputs are its biases."""
    return nn.Sequential(nn.Dropout(1.0), nn.Linear(4, spec.num_actions))


def test_only_the_online_network_is_in_train_mode(
    monkeypatch: pytest.MonkeyPatch, random_minibatch: MinibatchMaker
) -> None:
    monkeypatch.setitem(sys.modules, "my_networks", sys.modules[__name__])
    config = LearnerConfig(network="my_networks:without_inputs", optimizer="sgd", learning_rate=0.1)
    step, minibatch = UpdateStep(VECTOR, config, seed=0), random_minibatch(VECTOR, 8)
    before = torch.from_numpy(step.weights())
    weight, bias = before[:12].view(3, 4), before[12:]
    batch = to_batch(minibatch, 1, step.device)
    assert isinstance(batch.obs_t, torch.Tensor)
    y = q_learning_target(batch.r_t, batch.discount_t, batch.obs_t @ weight.t() + bias)
    np.testing.assert_allclose(run(step, VECTOR, minibatch), (y - bias[batch.a_tm1]).abs(), rtol=1e-4)
    np.testing.assert_array_equal(step.weights()[:12], before[:12])
    assert (step.weights()[12:] != before[12:].numpy()).any()


class PartlyFrozen(Mlp):
    """The first layer's weight and the last layer's bias are frozen."""

    def __init__(self, spec: NetworkSpec, config: LearnerConfig) -> None:
        super().__init__((4, 16, spec.num_actions))
        for parameter in (self.layers[0].weight, self.layers[1].bias):
            parameter.requires_grad_(False)


@pytest.mark.parametrize("queues", [False, True])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"optimizer": "sgd", "target_polyak": 0.7, "double": True},
        {"optimizer": "adamw", "weight_decay": 0.5},
        {"precision": "bfloat16"},
    ],
)
def test_frozen_parameters_keep_every_bit_and_travel(
    switches: dict[str, Any], queues: bool, monkeypatch: pytest.MonkeyPatch, random_minibatch: MinibatchMaker
) -> None:
    monkeypatch.setitem(sys.modules, "my_networks", sys.modules[__name__])
    config = LearnerConfig(network="my_networks:PartlyFrozen", learning_rate=0.01, max_grad_norm=0.1)
    config = replace(config, **switches)
    step = UpdateStep(VECTOR, config, seed=0, queues=queues)
    before = step.weights()
    for seed in range(3):
        step.finish(step.start(to_batch(random_minibatch(VECTOR, 8, seed), 1, step.device)))
    after = step.weights()
    frozen = np.repeat([True, False, True], [64, 16 + 48, 3])
    np.testing.assert_array_equal(after[frozen], before[frozen])
    np.testing.assert_array_equal(step.state().tensors["target"][frozen], before[frozen])
    assert (after[~frozen] != before[~frozen]).mean() > 0.8
    policy, observations = TorchPolicy(VECTOR, config, threads=1), np.ones((2, 4), np.float32)
    policy.load(after)
    plain = TorchPolicy(VECTOR, LearnerConfig(hidden_sizes=(16,)), threads=1)
    plain.load(after)
    np.testing.assert_allclose(policy.q_values(observations), plain.q_values(observations), rtol=1e-5)


def test_a_wrong_state_is_refused() -> None:
    adam = UpdateStep(VECTOR, LearnerConfig(), seed=0)
    sgd = UpdateStep(VECTOR, LearnerConfig(optimizer="sgd"), seed=0)
    small = UpdateStep(VECTOR, LearnerConfig(hidden_sizes=(3,)), seed=0)
    for other in (sgd, small):
        with pytest.raises(ValueError, match="this configuration needs"):
            adam.restore(other.state())


def test_both_networks_and_the_statistics_begin_with_given_weights() -> None:
    step = UpdateStep(VECTOR, LearnerConfig(hidden_sizes=(8,), normalize_observations=True), seed=0)
    network = 4 * 8 + 8 + 8 * 3 + 3
    rng = np.random.default_rng(0)
    weights = np.concatenate([rng.normal(size=network + 4), rng.uniform(0.2, 3.0, 4)]).astype(np.float32)
    step.start_from(weights)
    state = step.state().tensors
    np.testing.assert_array_equal(state["online"], weights[:network])
    np.testing.assert_array_equal(state["target"], weights[:network])
    np.testing.assert_allclose(step.weights(), weights, rtol=1e-6)
    with pytest.raises(ValueError, match=r"have shape \[74\], this network takes \[75\]"):
        step.start_from(weights[:-1])


def test_an_action_out_of_range_raises(table_minibatch: MinibatchMaker) -> None:
    step = table_step(np.zeros((2, 2)), LearnerConfig(optimizer="sgd"))
    with pytest.raises(RuntimeError, match="out of bounds"):
        run(step, TABLE, table_minibatch([(0, 2, 1.0, 0.0, 0)]))


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


def test_the_cpu_by_name() -> None:
    assert prepare_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused() -> None:
    assert prepare_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device"):
        prepare_device("cuda")


@pytest.fixture
def other_defaults() -> Iterator[None]:
    """As simulators that are written in torch set them for themselves; "meta" stands for a GPU."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def updated_and_acted(spec: NetworkSpec, config: LearnerConfig, minibatch: Minibatch) -> list[np.ndarray]:
    """Weights after two updates, the Q-values of a policy that acts with them, and the metrics."""
    step = UpdateStep(spec, config, seed=1)
    for _ in range(2):
        run(step, spec, minibatch)
    policy = TorchPolicy(spec, config, threads=1, noise=np.random.SeedSequence(3))
    policy.load(step.weights())
    observations = minibatch.windows["observation"][:, : spec.stack].reshape(-1, *spec.observation_shape)
    return [step.weights(), policy.q_values(observations), np.array(step.take_metrics().loss_mean)]


@pytest.mark.parametrize(
    "config",
    [
        LearnerConfig(),
        LearnerConfig(head="iqn", noisy=True, optimizer="adamw", weight_decay=0.1),
        LearnerConfig(head="qr", munchausen=True, layer_norm=True, normalize_observations=True),
        LearnerConfig(head="c51", dueling=True),
        LearnerConfig(network="impala_cnn", spectral_norm=True),
        LearnerConfig(network="minatar_cnn"),
    ],
    ids=["q", "iqn", "qr", "c51", "impala", "minatar"],
)
def test_an_environment_that_sets_defaults_of_torch_changes_nothing(
    config: LearnerConfig, random_minibatch: MinibatchMaker, request: pytest.FixtureRequest
) -> None:
    spec = IMAGES if config.network.endswith("cnn") else VECTOR
    minibatch = random_minibatch(spec, 8)
    usual = updated_and_acted(spec, config, minibatch)
    request.getfixturevalue("other_defaults")
    for one, other in zip(usual, updated_and_acted(spec, config, minibatch), strict=True):
        np.testing.assert_array_equal(one, other)
