from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec
from torch import nn
from torch.nn.utils import vector_to_parameters

from learner.choices import batch_of_ones
from learner.config import LearnerConfig, NetworkSpec
from learner.networks.build import build_network
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep

SPECS = {
    "mlp": NetworkSpec((4,), "float32", None, 3, stack=1),
    "images": image_spec((2, 36, 36), 3, stack=2),
    "table": NetworkSpec((), "int64", 7, 3, stack=1),
}


@pytest.mark.parametrize("name", SPECS)
def test_q_values_are_those_of_the_learner_s_network(name: str) -> None:
    spec, config = SPECS[name], LearnerConfig()
    weights = UpdateStep(spec, config, seed=0).weights()
    weights += np.random.default_rng(0).normal(0, 0.1, weights.size).astype(np.float32)
    policy = TorchPolicy(spec, config, threads=1)
    policy.load(weights)
    rng = np.random.default_rng(1)
    observations = rng.integers(7, size=(5, *spec.observation_shape)).astype(spec.observation_dtype)
    network = build_network(spec, config)
    vector_to_parameters(torch.from_numpy(weights.copy()), network.parameters())
    q_values = policy.q_values(observations)
    assert q_values.dtype == np.float32
    expected = network(torch.from_numpy(observations)).detach().numpy()
    np.testing.assert_allclose(q_values, expected, rtol=1e-4, atol=1e-6)

    weights[:] = 0.0  # it keeps a copy
    np.testing.assert_array_equal(policy.q_values(observations), q_values)


def test_large_layers_act_on_the_weights_loaded_last() -> None:
    spec = image_spec((4, 84, 84), 3, stack=4)
    config = LearnerConfig(network="nature_cnn")
    policy = TorchPolicy(spec, config, threads=1)
    observations = np.random.default_rng(0).integers(256, size=(4, 4, 84, 84)).astype(np.uint8)
    for seed in (0, 1):
        weights = UpdateStep(spec, config, seed=seed).weights()
        policy.load(weights)
        network = build_network(spec, config)
        vector_to_parameters(torch.from_numpy(weights), network.parameters())
        expected = network(torch.from_numpy(observations)).detach().numpy()
        np.testing.assert_allclose(policy.q_values(observations), expected, rtol=1e-4, atol=1e-5)


def test_acting_does_not_follow_what_is_set_for_updates() -> None:
    spec = image_spec((4, 84, 84), 3, stack=4)
    settings = LearnerConfig(), LearnerConfig(convolution_layout="channels_first", dense_products="blas")
    observations = np.random.default_rng(0).integers(256, size=(40, 4, 84, 84)).astype(np.uint8)
    updates, values = [], []
    for config in settings:
        step = UpdateStep(spec, config, seed=0)
        step(batch_of_ones(spec, 64))
        updates.append(step.weights())
        policy = TorchPolicy(spec, config, threads=1)
        policy.load(updates[0])
        values.append(policy.q_values(observations))
    np.testing.assert_array_equal(*values)
    assert not np.array_equal(*updates)


def test_weights_may_be_read_only() -> None:
    policy = TorchPolicy(SPECS["table"], LearnerConfig(), threads=1)
    weights = np.arange(21, dtype=np.float32)
    weights.flags.writeable = False
    policy.load(weights)
    np.testing.assert_array_equal(policy.q_values(np.array([6, 0])), [[18, 19, 20], [0, 1, 2]])


@pytest.mark.parametrize("weights", [np.zeros(20, np.float32), np.zeros((7, 3), np.float32), np.zeros(21)])
def test_wrong_weights_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"takes float32 \[21\]"):
        TorchPolicy(SPECS["table"], LearnerConfig(), threads=1).load(weights)


def test_distributions_act_on_their_means() -> None:
    spec = NetworkSpec((), "int64", 1, 2, stack=1)
    # Logits of returns -1, 0, 1: action 0 likeliest at 1 but of mean 0, action 1 of mean 1/2.
    logits = np.log(np.array([[0.45, 0.1, 0.45], [0.0625, 0.375, 0.5625]], np.float32)).ravel()
    config = LearnerConfig(head="c51", num_atoms=3, value_range=(-1.0, 1.0))
    policy = TorchPolicy(spec, config, threads=1)
    policy.load(logits)
    np.testing.assert_allclose(policy.q_values(np.array([0])), [[0.0, 0.5]], atol=1e-6)
    policy = TorchPolicy(spec, LearnerConfig(head="qr", num_atoms=3), threads=1)
    policy.load(np.array([9, -3, 0, 1, 1, 1], np.float32))
    np.testing.assert_allclose(policy.q_values(np.array([0])), [[2.0, 1.0]])


def test_implicit_quantiles_act_on_the_mean_of_fixed_ones() -> None:
    spec = SPECS["mlp"]
    config = LearnerConfig(head="iqn", iqn_acting_quantiles=3, hidden_sizes=(8, 8))
    weights = UpdateStep(spec, config, seed=0).weights()
    policy = TorchPolicy(spec, config, threads=1)
    policy.load(weights)
    network = build_network(spec, config)
    vector_to_parameters(torch.from_numpy(weights), network.parameters())
    observations = torch.randn(5, 4)
    quantiles = network(observations, torch.tensor([[1 / 6, 3 / 6, 5 / 6]])).detach()
    q_values = policy.q_values(observations.numpy())
    np.testing.assert_allclose(q_values, quantiles.mean(dim=2), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(policy.q_values(observations.numpy()), q_values)


def test_noise_is_drawn_at_each_load_by_its_seed_and_only_where_asked_for() -> None:
    spec, config = SPECS["mlp"], LearnerConfig(noisy=True, hidden_sizes=(8, 8))
    weights = UpdateStep(spec, config, seed=0).weights()
    observations = np.ones((2, 4), np.float32)

    def two_loads(noise: np.random.SeedSequence | None) -> list[np.ndarray]:
        policy = TorchPolicy(spec, config, threads=1, noise=noise)
        played = []
        for _ in range(2):
            policy.load(weights)
            played.append(policy.q_values(observations))
            np.testing.assert_array_equal(policy.q_values(observations), played[-1])
        return played

    quiet = two_loads(None)
    np.testing.assert_array_equal(quiet[0], quiet[1])
    first = two_loads(np.random.SeedSequence(1))
    np.testing.assert_array_equal(first, two_loads(np.random.SeedSequence(1)))
    distinct = [quiet[0], *first, *two_loads(np.random.SeedSequence(2))]
    assert len({played.tobytes() for played in distinct}) == 5


def with_dropout(spec: NetworkSpec, config: LearnerConfig) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 32), nn.Dropout(), nn.Linear(32, spec.num_actions))


def test_a_custom_network_acts_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_networks", sys.modules[__name__])
    spec, config = SPECS["mlp"], LearnerConfig(network="my_networks:with_dropout")
    policy = TorchPolicy(spec, config, threads=1)
    policy.load(UpdateStep(spec, config, seed=0).weights())
    observations = np.ones((5, 4), np.float32)
    first = policy.q_values(observations)
    np.testing.assert_array_equal(policy.q_values(observations), first)
    # The last of a batch may be summed in another order; dropout would change half of the hidden units.
    np.testing.assert_allclose(first, first[:1].repeat(5, axis=0), rtol=1e-5)
