"""The policy of a run directory: read with its weights, by name or ready to act."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from qfleet_serial import RECALL, SMALL, train_serial

from cluster.policies.saved_policy import load_policy, output_path, read_policy
from cluster.settings.config import ConfigError
from learner.weights import load_weights


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("cartpole") / "run"
    train_serial(run_dir, SMALL)
    return run_dir


@pytest.mark.parametrize("which", ["best", "latest"])
def test_the_named_weights_are_read_with_their_facts(cartpole: Path, which: str) -> None:
    flat, facts = load_weights(cartpole / "weights" / f"{which}.safetensors")
    saved = read_policy(cartpole, which)
    np.testing.assert_array_equal(saved.flat, flat)
    assert (saved.weights, saved.facts, saved.version) == (which, facts, int(facts["version"]))
    assert saved.config.env.id == "CartPole-v1"
    assert saved.spec.num_actions == 2
    assert read_policy(cartpole).weights == "best"


def test_weights_are_given_by_name_if_they_fit_the_network(cartpole: Path) -> None:
    saved = read_policy(cartpole)
    named = saved.named_weights()
    np.testing.assert_array_equal(np.concatenate([array.ravel() for array in named.values()]), saved.flat)
    shortened = dataclasses.replace(saved, flat=saved.flat[:-1])
    with pytest.raises(ConfigError, match=r"run: the weights have shape \[113\], this network takes \[114\]"):
        shortened.named_weights()


def test_a_policy_acts_by_the_largest_value_of_its_weights(cartpole: Path) -> None:
    policy = load_policy(cartpole)
    flat = load_weights(cartpole / "weights" / "best.safetensors")[0]
    first, bias_1, second, bias_2 = np.split(flat, [64, 80, 112])
    actions = set()
    for observation in np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32):
        hidden = np.maximum(first.reshape(16, 4) @ observation + bias_1, 0.0)
        q = second.reshape(2, 16) @ hidden + bias_2
        if abs(q[0] - q[1]) > 1e-4:  # else rounding may decide
            assert policy(observation) == int(q.argmax())
            actions.add(int(q.argmax()))
    assert actions == {0, 1}


def test_a_policy_refuses_another_shape(cartpole: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\); this policy takes \(4,\)"):
        load_policy(cartpole)(np.zeros(3, np.float32))


def test_a_stacked_policy_of_a_run_plays_perfectly_once_trained(tmp_path: Path) -> None:
    from qfleet_test_envs import Recall

    assert train_serial(tmp_path / "run", RECALL).outcome.solved
    policy = load_policy(str(tmp_path / "run"))
    for seed in range(10):
        env = Recall()
        observation, _ = env.reset(seed=seed)
        policy.reset()
        total, ended = 0.0, False
        while not ended:
            observation, reward, ended, _, _ = env.step(policy(observation))
            total += reward
        assert total == 1.0


def test_a_file_needs_a_folder(tmp_path: Path) -> None:
    assert output_path(None, tmp_path / "policy.onnx") == tmp_path / "policy.onnx"
    assert output_path(tmp_path / "mine.onnx", tmp_path / "policy.onnx") == tmp_path / "mine.onnx"
    with pytest.raises(ConfigError, match="there is no folder"):
        output_path(tmp_path / "nowhere" / "mine.onnx", tmp_path / "policy.onnx")
