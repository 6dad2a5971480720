"""Observations of several arrays, action masks and normalization through whole runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qfleet_serial import SMALL, train_serial
from qfleet_test_envs import Signals

from actors.core import EnvSpec
from cluster.api import prepare
from cluster.check_env import describe
from cluster.engines.machine import this_machine
from cluster.policies.evaluate import evaluate_run
from cluster.policies.saved_policy import load_policy
from cluster.record.run_dir import read_config, read_spec
from cluster.runtime.roles import make_policy
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_config
from cluster.settings.plan import make_plan
from cluster.settings.resolve import network_spec, resolve
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep
from learner.weights import load_weights
from replay_service.block import FrameField

SIGNALS = (
    *SMALL,
    "env.id=qfleet_test_envs:Signals",
    "env.stack=3",
    "actors.n_step=2",
    "actors.epsilon_decay_env_steps=1000",
    "replay.sampling=prioritized",
    "replay.num_shards=2",
    "replay.compression=lz4",
    "replay.capacity=4000",
    "learner.normalize_observations=true",
    "learner.learning_rate=1e-3",
    "learner.target_update_updates=20",
    "evaluation.episodes=40",
    "evaluation.every_updates=100",
    "stop.updates=1000",
    "stop.target_return=1.0",
)
"""Every part is needed: the lamp two frames ago, the sign one frame ago, the phase now, and the masks."""


@pytest.mark.parametrize("persist", ["none", "continuous"])
def test_a_run_on_images_vectors_and_states_with_masks_learns_and_is_played_again(
    tmp_path: Path, persist: str
) -> None:
    # Guessing scores 0.5; that 40 guesses, twice, all earn 1 happens once in 2^80.
    result = train_serial(tmp_path / "run", [*SIGNALS, f"replay.persist={persist}"])
    assert result.outcome.solved
    spec, config = read_spec(tmp_path / "run"), read_config(tmp_path / "run")
    assert spec.action_mask
    assert config.env.action_mask is True
    assert [part.name for part in spec.parts] == ["lamp", "panel.0", "panel.1"]
    assert config.learner.network == "nature_cnn"
    assert set(evaluate_run(tmp_path / "run", episodes=20, seed=3).returns) == {1.0}

    policy = load_policy(tmp_path / "run")
    for seed in range(10):
        env = Signals()
        observation, info = env.reset(seed=seed)
        policy.reset()
        total, ended = 0.0, False
        while not ended:
            observation, reward, ended, _, info = env.step(policy(observation, info["action_mask"]))
            total += reward
        assert total == 1.0
    with pytest.raises(ValueError, match="needs the action mask"):
        policy(observation)


def test_a_run_of_parts_repeats_bit_for_bit(tmp_path: Path) -> None:
    short = [*SIGNALS, "stop.updates=40", "evaluation.every_updates=1000"]
    flats = []
    for name in ("one", "two"):
        train_serial(tmp_path / name, short)
        flats.append(load_weights(tmp_path / name / "weights" / "latest.safetensors")[0])
    assert flats[0].tobytes() == flats[1].tobytes()
    # Behind the weights travel mean and inverse deviation of the two float values.
    mean, inverse = flats[0][-4:].reshape(2, 2)
    assert mean == pytest.approx([4_000.0, 0.25], abs=500.0)
    assert 1 / inverse[0] == pytest.approx(2_000.0 / np.sqrt(3.0), rel=0.5)


def test_check_env_and_plan_speak_of_every_part() -> None:
    config = load_config(None, SIGNALS)
    text = describe(config)
    assert "lamp: 36 x 36 image, 1 channel (last), 3 stacked (uint8, divided by 255); " in text
    assert "panel.0: 2 numbers, 3 stacked (float32); " in text
    assert "panel.1: 3 numbers, 3 stacked (bool)" in text
    assert "3, masked by info['action_mask']" in text
    prepared = prepare(config)
    plan = make_plan(prepared.config, prepared.spec, this_machine())
    frame_bytes = 36 * 36 + 2 * 4 + 3 + 3
    assert plan.raw_bytes - 2 * 3 * frame_bytes < 64
    assert plan.compressed_bytes is not None
    assert plan.compressed_bytes < plan.deduplicated_bytes


def test_settings_that_do_not_fit_the_spaces_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="normalize_observations is true, which needs numbers"):
        prepare(load_config(None, ["env.id=FrozenLake-v1", "learner.normalize_observations=true"]))
    with pytest.raises(ConfigError, match="network is table, which needs Discrete observations"):
        prepare(load_config(None, [*SIGNALS, "learner.network=table"]))


PARTS = (FrameField("a", "<f4", (2,)), FrameField("b", "|b1", (3,)))


@pytest.mark.parametrize(
    ("spec", "in_torch"),
    [
        (EnvSpec((3,), "<f4", None, 4, 1, "sync", "next_step", None, None), False),
        (EnvSpec((2, 3), "<f4", None, 4, 3, "sync", "next_step", None, None), False),
        (EnvSpec((3,), "<f4", None, 4, 1, "sync", "next_step", None, None, action_mask=True), False),
        (EnvSpec((), "|V", None, 4, 2, "sync", "next_step", None, None, PARTS), True),
    ],
    ids=["vector", "stacked", "masked", "parts"],
)
def test_acting_takes_the_statistics_that_travel_with_the_weights(spec: EnvSpec, in_torch: bool) -> None:
    overrides = ["learner.normalize_observations=true", "learner.hidden_sizes=[16, 8]"]
    config = resolve(load_config(None, overrides), spec, cores=1)
    fitted = network_spec(spec)
    frame_shape = (2,) if spec.parts else spec.observation_shape
    size = math.prod(frame_shape)
    rng = np.random.default_rng(0)
    mean = rng.normal(100.0, 50.0, size).astype(np.float32)
    inverse = np.geomspace(1e-3, 1.0, size).astype(np.float32)
    weights = UpdateStep(fitted, config.learner, seed=0).weights()[: -2 * size]
    policy = make_policy(config, spec)
    assert isinstance(policy, TorchPolicy) == in_torch
    policy.load(np.concatenate([weights, mean, inverse]))
    reference = TorchPolicy(fitted, replace(config.learner, normalize_observations=False), threads=1)
    reference.load(weights)

    stack = () if spec.stack == 1 else (spec.stack,)
    raw = rng.normal(100.0, 60.0, (50, *stack, *frame_shape)).astype(np.float32)
    normal = (raw - mean.reshape(frame_shape)) * inverse.reshape(frame_shape)
    assert (np.abs(normal) > 10.0).any()
    normal = np.clip(normal, -10.0, 10.0)
    if spec.parts:
        records = [np.zeros((50, *stack), spec.frame_dtype) for _ in range(2)]
        for record, values in zip(records, (raw, normal), strict=True):
            record["observation.a"] = values
        raw, normal = records
    np.testing.assert_allclose(policy.q_values(raw), reference.q_values(normal), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [(), ("learner.normalize_observations=true", "env.stack=2")])
def test_codes_are_learned_equally_whatever_their_dtype(tmp_path: Path, settings: tuple[str, ...]) -> None:
    flat = []
    for dtype in ("uint8", "int32", "float32"):
        run = tmp_path / dtype
        env = ("env.id=qfleet_test_envs:ByteCodes", f"env.kwargs.dtype={dtype}")
        train_serial(run, [*SMALL, *env, *settings])
        flat.append(load_weights(run / "weights" / "latest.safetensors")[0].tobytes())
    assert flat[0] == flat[1] == flat[2]
