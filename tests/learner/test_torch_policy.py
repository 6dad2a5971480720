from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils import vector_to_parameters

from learner.config import LearnerConfig, NetworkSpec
from learner.networks import build_network
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep

SPECS = {
    "mlp": NetworkSpec((4,), "float32", None, 3, stack=1),
    "images": NetworkSpec((2, 36, 36), "uint8", None, 3, stack=2),
    "table": NetworkSpec((), "int64", 7, 3, stack=1),
}


@pytest.mark.parametrize("name", SPECS)
def test_it_says_what_the_learner_s_network_says(name: str) -> None:
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


def test_it_takes_read_only_weights() -> None:
    policy = TorchPolicy(SPECS["table"], LearnerConfig(), threads=1)
    weights = np.arange(21, dtype=np.float32)
    weights.flags.writeable = False
    policy.load(weights)
    np.testing.assert_array_equal(policy.q_values(np.array([6, 0])), [[18, 19, 20], [0, 1, 2]])


@pytest.mark.parametrize("weights", [np.zeros(20, np.float32), np.zeros((7, 3), np.float32), np.zeros(21)])
def test_wrong_weights_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"takes float32 \[21\]"):
        TorchPolicy(SPECS["table"], LearnerConfig(), threads=1).load(weights)
