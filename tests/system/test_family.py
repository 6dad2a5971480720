"""The DQN family through a whole run: presets, acting policies, and what a skipped update leaves behind."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actors.core import EnvSpec
from actors.policy import MlpPolicy
from cluster.api import train
from cluster.runtime.failure import RunFailed
from cluster.runtime.roles import make_policy
from cluster.settings.load_config import load_config, preset_for_env, preset_paths
from cluster.settings.resolve import network_spec, resolve
from cluster.show.view import make_view
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep

SPEC = EnvSpec((4,), "<f4", None, 2, 1, "native", "next_step", None, None)
SHORT = (
    "run.runtime=serial",
    "env.kwargs={}",
    "actors.envs_per_actor=8",
    "pacing.learning_starts=600",
    "stop.updates=20",
    "evaluation.every_updates=20",
    "evaluation.episodes=2",
)
silent = partial(make_view, stream=io.StringIO())


@pytest.mark.parametrize("name", ["rainbow", "apex", "modern"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1"])
def test_presets_of_the_family_train_on_any_vector_environment(
    name: str, env_id: str, tmp_path: Path
) -> None:
    path = preset_paths()[name]
    config = load_config(path, [*SHORT, f"env.id={env_id}"])
    result = train(config, tmp_path / "run", view=silent)
    assert result.outcome.final.updates_total >= 20
    assert result.outcome.final.skipped_updates_total == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert 0.0 < last["grad_norm_clipped_mean"] <= last["grad_norm_mean"]


def test_presets_of_the_family_belong_to_no_environment() -> None:
    assert preset_for_env("CartPole-v1") == preset_paths()["cartpole"]


@pytest.mark.parametrize("switch", ["head=c51", "head=qr", "dueling=true", "noisy=true", "layer_norm=true"])
def test_what_is_no_plain_mlp_acts_through_torch(switch: str) -> None:
    config = resolve(load_config(None, [f"learner.{switch}", "learner.hidden_sizes=[8, 8]"]), SPEC, cores=1)
    policy = make_policy(config, SPEC)
    assert isinstance(policy, TorchPolicy)
    weights = UpdateStep(network_spec(SPEC), config.learner, seed=0).weights()
    policy.load(weights)
    values = policy.q_values(np.ones((3, 4), np.float32))
    assert values.shape == (3, 2)
    exploring = make_policy(config, SPEC, np.random.SeedSequence(0))
    exploring.load(weights)
    differs = bool((exploring.q_values(np.ones((3, 4), np.float32)) != values).any())
    assert differs == (switch == "noisy=true")


def test_plain_mlps_act_in_numpy() -> None:
    config = resolve(load_config(None, ["learner.double=true", "learner.loss=huber"]), SPEC, cores=1)
    assert isinstance(make_policy(config, SPEC), MlpPolicy)


def test_a_skipped_update_is_on_record_in_the_logs(tmp_path: Path) -> None:
    # A rate that throws the weights far out within the first chunk, before anybody acts by them.
    overrides = [
        *SHORT,
        "actors.n_step=1",
        "replay.sampling=prioritized",
        "learner.optimizer=sgd",
        "learner.learning_rate=1e12",
        "learner.max_grad_norm=null",
        "learner.max_skipped_updates=2",
    ]
    with pytest.raises(RunFailed, match="2 updates were skipped"):
        train(load_config(None, overrides), tmp_path / "run", view=silent)
    (path,) = (tmp_path / "run" / "logs").glob("*.skipped.jsonl")
    first, second = map(json.loads, path.read_text().splitlines())
    assert first["version"] == second["version"] > 0
    assert len(first["keys"]) == sum(first["transitions_per_shard"]) == 64
    assert first["arrays"]["reward"] == {"smallest": 1.0, "largest": 1.0, "not_finite": 0}
    assert "inf" in (first["loss"], first["grad_norm"]) or "nan" in (first["loss"], first["grad_norm"])
