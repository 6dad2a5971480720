"""Runs that begin with the weights of an earlier one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from qfleet_serial import SMALL, train_serial

from actors.evaluation import evaluate
from cluster.policies.export import export_run
from cluster.record.run_dir import read_config, read_spec, read_weights
from cluster.runtime.roles import make_policy
from cluster.settings.config import ConfigError

# Learning too slow to change a weight, so that what is evaluated is what the run began with.
STILL = (*SMALL, "learner.learning_rate=1e-30", "stop.updates=80")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("earlier") / "run"
    train_serial(run_dir, [*SMALL, "learner.normalize_observations=true"])
    return run_dir


def evaluations(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("from_file", [False, True])
def test_a_run_begins_with_the_weights_and_their_evaluation(
    earlier: Path, tmp_path: Path, from_file: bool
) -> None:
    source = export_run(earlier, "safetensors", out=tmp_path / "w.safetensors").path if from_file else earlier
    begins = [*STILL, "learner.normalize_observations=true", f"learner.initial_weights={source}"]
    train_serial(tmp_path / "run", begins)
    name, flat, facts = read_weights(earlier)
    first = evaluations(tmp_path / "run")[0]
    assert first["version"] == 0

    # The same weights played with the same seeds: version 0 of a run that has no others.
    train_serial(tmp_path / "again", [*begins, "stop.updates=1"])
    assert first["returns"] == evaluations(tmp_path / "again")[0]["returns"]
    network = 16 * 4 + 16 + 2 * 16 + 2
    np.testing.assert_array_equal(read_weights(tmp_path / "run", "latest")[1][:network], flat[:network])

    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())["initial_weights"]
    assert provenance["path"] == str(source)
    assert (provenance["weights"], provenance["version"]) == (name, facts["version"])
    assert len(provenance["sha256"]) == 64


def test_the_first_evaluation_is_that_of_the_earlier_runs_weights(tmp_path: Path) -> None:
    train_serial(tmp_path / "earlier", SMALL)
    train_serial(tmp_path / "run", [*STILL, f"learner.initial_weights={tmp_path / 'earlier'}"])
    begun = evaluations(tmp_path / "run")
    # 16 updates at rate 1e-30 change nothing, so every later evaluation is of these weights, too.
    earlier = read_weights(tmp_path / "earlier")[1]
    np.testing.assert_array_equal(read_weights(tmp_path / "run", "latest")[1], earlier)
    config, spec = read_config(tmp_path / "earlier"), read_spec(tmp_path / "earlier")
    policy = make_policy(config, spec)
    policy.load(earlier)
    played = evaluate(config.env, policy, version=0, seed_domain=0, episodes=3, seed=0)
    assert (begun[0]["version"], begun[0]["seed_domain"]) == (0, 0)
    assert begun[0]["returns"] == list(played.returns)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.hidden_sizes=[8]"], ["layers.0.weight is [16, 4] there, [8, 4] here"]),
        (["env.id=Acrobot-v1", "run.preset=none"], ["observations", "[6]", "[4]", "actions 2 there, 3 here"]),
        (["learner.head=qr"], ["head q there, qr here"]),
        (["learner.dueling=true"], ["layers.0.weight is [16, 4] there, missing here"]),
        (["learner.initial_weights=nowhere"], ["nowhere", "give a run directory"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name_with_both_shapes(
    overrides: list[str], words: list[str], tmp_path: Path
) -> None:
    train_serial(tmp_path / "earlier", [*SMALL, "stop.updates=8"])
    with pytest.raises(ConfigError) as refused:
        train_serial(
            tmp_path / "run", [*STILL, f"learner.initial_weights={tmp_path / 'earlier'}", *overrides]
        )
    for word in words:
        assert word in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_weights_without_names_are_refused(tmp_path: Path) -> None:
    train_serial(tmp_path / "earlier", [*SMALL, "stop.updates=8"])
    flat = tmp_path / "earlier" / "weights" / "latest.safetensors"
    with pytest.raises(ConfigError, match="qfleet export"):
        train_serial(tmp_path / "run", [*STILL, f"learner.initial_weights={flat}"])
