"""Wiring between packages: acting and learning agree on weights, and environments overlap where that pays.

Tests cluster/runtime/evaluator_role.py, too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_configs import ATARI
from qfleet_reports import learn_report

from actors.core import EnvSpec
from actors.soft_values import GREEDY, SoftValues
from cluster.engines.serial_engine import SerialEngine
from cluster.record.logs import LogSource
from cluster.runtime.role import RoleContext
from cluster.runtime.roles import ActorRole, LearnerRole, make_policy, target_values
from cluster.settings.config import RunConfig
from cluster.settings.load_config import load_config
from cluster.settings.resolve import network_spec, resolve
from learner.config import LearnerConfig
from learner.core import LearnReport
from learner.networks.build import build_network
from learner.update import UpdateStep

SPECS = {
    "vector": EnvSpec((5,), "<f4", None, 3, 1, "sync", "next_step", None, None),
    "bytes": EnvSpec((7,), "|u1", None, 3, 1, "sync", "next_step", None, None, pixels=("observation",)),
    "stacked": EnvSpec((2, 3), "<f4", None, 4, 3, "sync", "next_step", None, None),
    "table": EnvSpec((), "<i8", 11, 4, 1, "sync", "next_step", None, None),
    "image": replace(
        ATARI, observation_shape=(40, 40), num_actions=3, backend="sync", max_episode_steps=None
    ),
}


def observations(spec: EnvSpec, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (count, *network_spec(spec).observation_shape)
    if spec.num_states is not None:
        return rng.integers(spec.num_states, size=count)
    if spec.observation_dtype == "|u1":
        return rng.integers(256, size=shape, dtype=np.uint8)
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("hidden", ["[16]", "[32, 8, 8]"])
def test_acting_reads_the_learners_weights_as_the_learner_does(name: str, hidden: str) -> None:
    spec = SPECS[name]
    config = resolve(load_config(None, [f"learner.hidden_sizes={hidden}"]), spec, cores=1)
    flat = UpdateStep(network_spec(spec), config.learner, seed=3).weights()
    # Other values than the initial ones, each of its own: a table begins with zeros.
    flat = (flat + np.linspace(-0.5, 0.5, flat.size)).astype(np.float32)
    network = build_network(network_spec(spec), config.learner)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(flat), network.parameters())
    batch = observations(spec, 64)
    policy = make_policy(config, spec)
    policy.load(flat)
    with torch.no_grad():
        expected = network(torch.from_numpy(batch)).numpy()
    assert np.ptp(expected) > 0.1
    # Two orders of summation of at most 2,000 float32 terms: relative errors near 1e-6.
    np.testing.assert_allclose(policy.q_values(batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_acting_refuses_weights_of_another_network(name: str) -> None:
    config = resolve(RunConfig(), SPECS[name], cores=1)
    flat = UpdateStep(network_spec(SPECS[name]), config.learner, seed=0).weights()
    with pytest.raises(ValueError, match="weights"):
        make_policy(config, SPECS[name]).load(flat[:-1])


@pytest.mark.parametrize(
    ("cores", "name", "runtime", "overlap"),
    [
        (4, "image", "local", True),
        (1, "image", "local", False),
        (4, "vector", "local", False),
        (4, "image", "serial", False),
    ],
    ids=["a network on many cores", "one core", "a policy in numpy", "the serial runtime"],
)
def test_environments_step_beside_the_policy_where_that_pays(
    cores: int, name: str, runtime: str, overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    class Actor:
        def __init__(self, *_: object, **options: object) -> None:
            given.update(options)

    monkeypatch.setattr("actors.rollout.EnvActor", Actor)
    monkeypatch.setattr("cluster.runtime.roles.available_cores", lambda: cores)
    wanted = [f"run.runtime={runtime}", "actors.num_actors=1"]
    if name == "image":  # too small for the Nature network
        wanted.append("learner.network=minatar_cnn")
    config = resolve(load_config(None, wanted), SPECS[name], cores)
    # The role takes over neither output nor signals here: this process is the test's.
    monkeypatch.setattr("cluster.runtime.role.leave_signals_to_driver", lambda: None)
    monkeypatch.setattr("cluster.runtime.role.ProcessLog", lambda *_: SimpleNamespace(relays=False))
    source = None if runtime == "serial" else LogSource("actor 0", 0, 0.0)
    context = RoleContext("actor 0", config, SPECS[name], logs=tmp_path, replay=tmp_path, source=source)
    ActorRole(context, SerialEngine().calls, [], 0, 0)
    assert given["overlap"] is overlap
    assert given["values"] == GREEDY


def test_initial_priorities_are_of_the_learner_s_targets() -> None:
    learner = LearnerConfig(munchausen=True, munchausen_alpha=0.8, munchausen_temperature=0.1)
    assert target_values(learner) == SoftValues(alpha=0.8, temperature=0.1, clip=-1.0)
    assert target_values(LearnerConfig(munchausen_alpha=0.8)) == GREEDY


def test_the_learner_knows_the_reuse_that_its_target_period_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    class Recorded:
        def __init__(self, *_: object, **options: object) -> None:
            given.update(options)

    monkeypatch.setattr("learner.loop.Learner", Recorded)
    config = resolve(load_config(None, ["pacing.samples_per_insert=3.5"]), SPECS["vector"], cores=1)
    context = RoleContext("learner", config, SPECS["vector"], logs=tmp_path, replay=tmp_path, source=None)
    LearnerRole(context, SerialEngine().calls, [], 0)
    assert given["samples_per_insert"] == 3.5


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], True),
        (["learner.threads=2"], True),
        (["run.runtime=serial"], False),
        (["learner.num_learners=2"], False),
    ],
)
def test_a_single_learner_beside_other_processes_measures(
    wanted: list[str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    class Recorded(FastWithTwoThreads):
        def __init__(self, *_: object, threads: int, **options: object) -> None:
            super().__init__(threads=threads)
            given.update(options)

    monkeypatch.setattr("learner.loop.Learner", Recorded)
    monkeypatch.setattr("cluster.runtime.role.leave_signals_to_driver", lambda: None)
    monkeypatch.setattr("cluster.runtime.role.ProcessLog", lambda *_: SimpleNamespace(relays=False))
    config = resolve(load_config(None, ["run.runtime=local", *wanted]), SPECS["vector"], cores=2)
    source = None if config.run.runtime == "serial" else LogSource("learner", 0, 0.0)
    context = RoleContext("learner", config, SPECS["vector"], logs=tmp_path, replay=tmp_path, source=source)
    LearnerRole(context, SerialEngine().calls, [], 0)
    assert given["measures"] is expected


class FastWithTwoThreads:
    """A learner whose updates take half the time with two threads."""

    device_type = "cpu"

    def __init__(self, *_: object, threads: int, **options: object) -> None:
        self.used = [threads]
        self.step = SimpleNamespace(device=SimpleNamespace(type=self.device_type))

    def use_threads(self, threads: int) -> None:
        self.used.append(threads)

    def learn(self, updates: int, seconds: float) -> tuple[LearnReport, np.ndarray]:
        took = 1.0 / self.used[-1]
        return learn_report(seconds={"draw": 0.0, "update": took, "other": 0.0}), np.zeros(1)


@pytest.mark.parametrize(
    ("wanted", "device", "expected"),
    [
        ([], "cpu", 2),
        (["learner.threads=1"], "cpu", 1),
        (["learner.threads=3"], "cpu", 3),
        (["run.runtime=serial"], "cpu", 1),
        (["learner.num_learners=2"], "cpu", 1),
        ([], "cuda", 1),
    ],
)
def test_a_single_learner_beside_other_processes_tries_more_threads(
    wanted: list[str], device: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.loop.Learner", FastWithTwoThreads)
    monkeypatch.setattr(FastWithTwoThreads, "device_type", device)
    monkeypatch.setattr("cluster.runtime.roles.available_cores", lambda: 2)
    monkeypatch.setattr("cluster.metrics.usage.FreeCores.newest", lambda _: 2.0)
    monkeypatch.setattr("cluster.runtime.role.leave_signals_to_driver", lambda: None)
    monkeypatch.setattr("cluster.runtime.role.ProcessLog", lambda *_: SimpleNamespace(relays=False))
    config = resolve(load_config(None, ["run.runtime=local", *wanted]), SPECS["vector"], cores=2)
    source = None if config.run.runtime == "serial" else LogSource("learner", 0, 0.0)
    context = RoleContext("learner", config, SPECS["vector"], logs=tmp_path, replay=tmp_path, source=source)
    role = LearnerRole(context, SerialEngine().calls, [], 0)
    learner: Any = role._learner
    notes = [note for _ in range(12) for note in role.learn(8)[0].notes]
    assert learner.used[-1] == expected
    told = ["updates use 2 threads from here on: 2 take 0.50 of the time of 1"] if expected == 2 else []
    assert [note.text for note in notes] == told
