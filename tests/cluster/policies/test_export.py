"""The weights of a run, written for other programs and read there.

Tests cluster/policies/export.py and cluster/policies/onnx_export.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime
import pytest
from gymnasium import spaces
from safetensors.numpy import load_file
from torch import nn

from actors.envs.make import lane_seeds
from actors.envs.observation_spaces import parts_of
from cluster.api import load_policy, prepare
from cluster.cli import run
from cluster.policies.export import export_run
from cluster.policies.onnx_export import ExportedPolicy, ExportError, input_name
from cluster.policies.playback import open_env
from cluster.record.run_dir import RunDir, read_config, read_spec, read_weights
from cluster.settings.load_config import load_config
from cluster.settings.resolve import network_spec
from learner.config import LearnerConfig, NetworkSpec
from learner.named_weights import flat_weights, named_weights, seeded_network, tail_size


class Panel(gym.Env):
    """Several arrays of every kind, actions from -1 on, one of three forbidden in turn."""

    observation_space = spaces.Dict(
        {
            "dial": spaces.MultiDiscrete([2, 3], start=[0, 4]),
            "far": spaces.Box(-5.0, 5.0, (2,), np.float64),
            "lamps": spaces.MultiBinary(3),
            "mode": spaces.Discrete(4, start=2),
            "pair": spaces.Tuple((spaces.Box(0, 255, (2, 2), np.uint8), spaces.Discrete(2))),
        }
    )
    action_space = spaces.Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), self.info()

    def step(self, action):
        assert self.info()["action_mask"][action + 1]
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 9, False, self.info()

    def info(self):
        return {"action_mask": np.arange(3) != self.steps % 3}


class Pictures(gym.Env):
    """Images of noise."""

    def __init__(self, side=36, channels=2):
        self.observation_space = spaces.Box(0, 255, (channels, side, side), np.uint8)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.picture(), {}

    def step(self, action):
        return self.picture(), 1.0, bool(self.np_random.random() < 0.1), False, {}

    def picture(self):
        return self.np_random.integers(256, size=self.observation_space.shape, dtype=np.uint8)


def with_dropout(spec: NetworkSpec, config: LearnerConfig) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(), nn.Linear(16, spec.num_actions))


def untrained_run(path: Path, overrides: Sequence[str]) -> Path:
    """A run directory with weights drawn at random."""
    prepared = prepare(load_config(None, overrides))
    config, spec = prepared.config, prepared.spec
    run_dir = RunDir.create(path, config, spec)
    run_dir.close()
    network = seeded_network(network_spec(spec), config.learner)
    rng = np.random.default_rng(3)
    flat = rng.normal(scale=0.1, size=sum(p.numel() for p in network.parameters()))
    if config.learner.normalize_observations:
        half = tail_size(network_spec(spec)) // 2
        flat = np.concatenate([flat, rng.normal(size=half), rng.uniform(0.5, 2.0, half)])
    run_dir.write_weights("latest", flat.astype(np.float32), {"version": "7", "return_mean": "1.5"})
    return path


CASES = {
    "mlp": ["env.id=CartPole-v1", "learner.hidden_sizes=[16]"],
    "everything on an mlp": [
        "env.id=CartPole-v1",
        "env.backend=sync",
        "learner.hidden_sizes=[16]",
        "learner.head=c51",
        "learner.dueling=true",
        "learner.noisy=true",
        "learner.layer_norm=true",
        "learner.normalize_observations=true",
    ],
    "table": ["env.id=FrozenLake-v1", "learner.head=qr", "learner.num_atoms=5"],
    "stacked nature": [
        f"env.id={__name__}:Pictures",
        "env.stack=2",
        "learner.head=qr",
        "learner.num_atoms=3",
        "learner.dueling=true",
        "learner.noisy=true",
    ],
    "impala": [
        f"env.id={__name__}:Pictures",
        "env.kwargs.side=12",
        "env.kwargs.channels=1",
        "learner.network=impala_cnn",
        "learner.layer_norm=true",
    ],
    "implicit quantiles": [
        "env.id=CartPole-v1",
        "learner.head=iqn",
        "learner.hidden_sizes=[16,8]",
        "learner.dueling=true",
        "learner.noisy=true",
    ],
    "implicit quantiles of pictures": [
        f"env.id={__name__}:Pictures",
        "env.kwargs.side=12",
        "learner.network=minatar_cnn",
        "learner.head=iqn",
        "learner.iqn_acting_quantiles=3",
        "learner.layer_norm=true",
    ],
    "pooled impala": [
        f"env.id={__name__}:Pictures",
        "learner.network=impala_cnn",
        "learner.impala_width=2",
        "learner.spectral_norm=true",
        "learner.pool_size=3",
        "learner.layer_norm=true",
    ],
    "dropout": ["env.id=CartPole-v1", f"learner.network={__name__}:with_dropout"],
    "bins": ["env.id=Pendulum-v1", "env.discretize=5", "learner.hidden_sizes=[16]"],
    "panel": [f"env.id={__name__}:Panel", "learner.hidden_sizes=[16]", "learner.normalize_observations=true"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_graph_plays_as_the_policy_does(case: str, tmp_path: Path) -> None:
    run_dir = untrained_run(tmp_path / "run", CASES[case])
    exported = export_run(run_dir, "onnx")
    assert exported.path == run_dir / "policy.onnx"
    assert exported.comparison is not None
    assert exported.comparison.max_abs_difference < 1e-4
    assert (exported.weights, exported.version) == ("latest", 7)
    assert exported.comparison.observations >= 256

    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["q_values", "action"]
    config, spec = read_config(run_dir), read_spec(run_dir)
    policy = load_policy(run_dir)
    stage = open_env(config.env, spec, pictures=False)
    values = set()
    # Other episodes than the check has seen, and one observation at a time.
    for seed in lane_seeds(np.random.SeedSequence(99), 5):
        policy.reset()
        moment = stage.reset(int(seed))
        newest: list[Any] = []
        for _ in range(20):
            newest = [*newest, moment.observation][-spec.stack :]
            newest = [newest[0]] * (spec.stack - len(newest)) + newest
            inputs = {}
            for part in parts_of(stage.observation_space):
                arrays = np.stack([np.asarray(part.of(one)) for one in newest])
                inputs[input_name(part)] = arrays if spec.stack == 1 else arrays[None]
            if spec.action_mask:
                inputs["action_mask"] = np.asarray(moment.action_mask)[None]
            q_values, action = session.run(None, inputs)
            expected = policy(moment.observation, moment.action_mask)
            assert q_values.shape == (1, spec.num_actions)
            np.testing.assert_allclose(action[0], expected, rtol=1e-6)
            values.add(q_values.tobytes())
            moment = stage.step(expected)
            if moment.ended:
                break
    stage.close()
    assert len(values) > 1


def test_a_graph_says_where_it_comes_from(tmp_path: Path) -> None:
    run_dir = untrained_run(tmp_path / "run", CASES["mlp"])
    path = export_run(run_dir, "onnx", "latest", tmp_path / "graph.onnx").path
    facts = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert facts["environment"] == "CartPole-v1"
    assert (facts["version"], facts["return_mean"], facts["weights"]) == ("7", "1.5", "latest")
    assert facts["commit"] == str(json.loads((run_dir / "provenance.json").read_text())["commit"])
    assert json.loads(facts["policy"])["observations"] == {"observation": ["<f4", [4]]}


@pytest.mark.parametrize("case", ["everything on an mlp", "panel", "table"])
def test_weights_by_name_make_the_vector_again(case: str, tmp_path: Path) -> None:
    run_dir = untrained_run(tmp_path / "run", CASES[case])
    named = load_file(export_run(run_dir, "safetensors").path)
    config, spec = read_config(run_dir), network_spec(read_spec(run_dir))
    flat = read_weights(run_dir)[1]
    np.testing.assert_array_equal(flat_weights(spec, config.learner, named), flat)
    assert len(named) > 1 or case == "table"
    with pytest.raises(ValueError, match=r"takes \["):
        named_weights(spec, config.learner, flat[:-1])


def wrong_values(forward: Any) -> Any:
    def wrong(self: Any, *inputs: Any) -> Any:
        q_values, action = forward(self, *inputs)
        return q_values + 1e-2, action

    return wrong


def wrong_actions(forward: Any) -> Any:
    def wrong(self: Any, *inputs: Any) -> Any:
        q_values, action = forward(self, *inputs)
        return q_values, 1 - action

    return wrong


@pytest.mark.parametrize(
    ("break_it", "words"), [(wrong_values, "in a Q-value"), (wrong_actions, "takes action")]
)
def test_a_graph_that_deviates_is_not_put_in_place(
    break_it: Any,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = untrained_run(tmp_path / "run", CASES["mlp"])
    (run_dir / "policy.onnx").write_text("the old one")
    monkeypatch.setattr(ExportedPolicy, "forward", break_it(ExportedPolicy.forward))
    with pytest.raises(ExportError, match=words):
        export_run(run_dir, "onnx")
    assert (run_dir / "policy.onnx").read_text() == "the old one"
    assert not list(run_dir.glob("*.partial"))
    assert run(["export", str(run_dir), "--format", "onnx"]) == 1
    assert "nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = untrained_run(tmp_path / "run", CASES["mlp"])
    monkeypatch.setitem(sys.modules, package, None)
    assert run(["export", str(run_dir), "--format", "onnx"]) == 2
    error = capsys.readouterr().err
    assert package in error
    assert "qfleet[export]" in error
    assert run(["export", str(run_dir), "--format", "safetensors"]) == 0
    assert "latest weights, version 7" in capsys.readouterr().out


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = untrained_run(tmp_path / "run", CASES["mlp"])
    for arguments, words in (
        (["--which", "best"], "holds no best weights"),
        (["--out", str(tmp_path / "nowhere" / "x")], "there is no folder"),
    ):
        assert run(["export", str(run_dir), "--format", "safetensors", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert run(["export", str(tmp_path), "--format", "onnx"]) == 2
    assert "no run directory" in capsys.readouterr().err
