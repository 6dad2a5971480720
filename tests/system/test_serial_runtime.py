"""Whole runs in one process: what they leave, that they repeat, that they learn, how they fail.

Tests cluster/api.py too: every run in a test begins with its `train`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import qfleet_test_envs
from qfleet_processes import run_qfleet, set_flags
from qfleet_serial import RECALL, SMALL, Recorder, train_serial
from qfleet_test_envs import Counted, opened_and_left

from actors.rollout import EnvActor
from cluster.runtime.failure import RunFailed
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_config, preset_paths
from learner.core import DivergedError
from learner.loop import Learner
from learner.weights import load_weights
from replay_service.shard import ReplayShard

SMALL_FLAGS = set_flags(SMALL)


def weights_of(run_dir: Path, name: str = "latest") -> tuple[bytes, dict[str, str]]:
    """Every bit of the weights, and what is said of them."""
    flat, facts = load_weights(run_dir / "weights" / f"{name}.safetensors")
    return flat.tobytes(), facts


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same small run in processes of its own: twice, from its saved config, and with another seed."""
    folder = tmp_path_factory.mktemp("repeated")
    sources = {
        "first": ["CartPole-v1", *SMALL_FLAGS, "--seed", "7"],
        "again": ["CartPole-v1", *SMALL_FLAGS, "--seed", "7"],
        "saved": [str(folder / "first" / "config.yaml")],
        "other": ["CartPole-v1", *SMALL_FLAGS, "--seed", "8"],
    }
    for name, arguments in sources.items():
        done = run_qfleet("train", *arguments, "--run-dir", str(folder / name), cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "stop.updates = 200 reached" in done.stdout
    return {name: folder / name for name in sources}


def test_the_same_seed_gives_the_same_bits(repeated: dict[str, Path]) -> None:
    for name in ("latest", "best"):
        assert weights_of(repeated["first"], name) == weights_of(repeated["again"], name)


def test_the_saved_config_repeats_the_run(repeated: dict[str, Path]) -> None:
    assert weights_of(repeated["first"]) == weights_of(repeated["saved"])
    assert (repeated["first"] / "config.yaml").read_text() == (repeated["saved"] / "config.yaml").read_text()


def test_another_seed_gives_other_weights(repeated: dict[str, Path]) -> None:
    assert weights_of(repeated["first"])[0] != weights_of(repeated["other"])[0]


def test_evaluations_repeat_too(repeated: dict[str, Path]) -> None:
    def played(name: str) -> list[object]:
        lines = (repeated[name] / "evaluations.jsonl").read_text().splitlines()
        return [(line["version"], line["seed_domain"], line["returns"]) for line in map(json.loads, lines)]

    assert played("first") == played("again")
    assert len(played("first")) >= 3


def totals(line: dict[str, Any]) -> dict[str, float]:
    """Name -> value of every counter; those with labels by their labels, too."""
    found: dict[str, float] = {}
    pending = [(name, value) for name, value in line.items() if name.endswith("_total")]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name} {label}", part) for label, part in value.items()]
        else:
            found[name] = value
    return found


def test_a_run_leaves_everything_that_it_promises(tmp_path: Path) -> None:
    run_dir, recorder = tmp_path / "run", Recorder()
    result = train_serial(run_dir, [*SMALL, "metrics.every_seconds=0.05"], recorder)
    assert result.outcome.reason == "stop.updates = 200 reached"
    assert result.outcome.final.updates_total == 200
    assert result.signal is None

    config = load_config(run_dir / "config.yaml")
    assert (config.env.id, config.learner.network, config.actors.num_actors) == ("CartPole-v1", "mlp", 1)
    provenance = json.loads((run_dir / "provenance.json").read_text())
    assert provenance["environment"]["num_actions"] == 2
    assert provenance["packages"]["gymnasium"]
    assert provenance["python"]

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(recorder.snapshots) >= 2
    for earlier, later in itertools.pairwise(map(totals, lines)):
        for name, value in earlier.items():
            assert later[name] >= value, f"{name} went backwards"
    last = lines[-1]
    assert last["updates_total"] == 200
    assert last["sampled_transitions_total"] == 200 * 16
    # Pacing: never above the ratio; below it by what acting may run ahead: 1 chunk of 32 transitions and
    # 1 of 8 updates.
    paced = last["inserted_transitions_total"] - 64
    assert 4 * paced - (4 * 32 + 8 * 16) <= last["sampled_transitions_total"] <= 4 * paced

    evaluations = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    assert [line["version"] for line in evaluations if not line["confirms"]] == [80, 160, 200]
    for line in evaluations:
        assert line["return_mean"] == pytest.approx(np.mean(line["returns"]))
        assert len(line["returns"]) == len(line["lengths"]) == 3

    latest, facts = load_weights(run_dir / "weights" / "latest.safetensors")
    assert latest.shape == (4 * 16 + 16 + 16 * 2 + 2,)
    assert facts == {"version": "200"}
    _, facts = load_weights(run_dir / "weights" / "best.safetensors")
    confirmed = {line["version"]: line["return_mean"] for line in evaluations if line["confirms"]}
    assert result.outcome.best_version == int(facts["version"])
    assert float(facts["return_mean"]) == pytest.approx(confirmed[int(facts["version"])], rel=1e-5)
    assert confirmed[int(facts["version"])] == max(confirmed.values())

    events = (run_dir / "logs" / "events.log").read_text().splitlines()
    assert len(events) == len(recorder.events)
    assert events[-1].endswith("END     stop.updates = 200 reached")


def test_the_serial_runtime_never_loads_ray(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from cluster.cli import run\n"
        "status = run(sys.argv[1:])\n"
        "sys.exit(status or ('ray' in sys.modules) * 9)\n"
    )
    arguments = ["train", "CartPole-v1", *SMALL_FLAGS, "--set", "stop.updates=8", "--run-dir", "run"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("updates", [1, 13, 24])
def test_updates_stop_exactly(tmp_path: Path, updates: int) -> None:
    result = train_serial(tmp_path / "run", [*SMALL, f"stop.updates={updates}"])
    assert result.outcome.final.updates_total == updates
    assert load_weights(tmp_path / "run" / "weights" / "latest.safetensors")[1]["version"] == str(updates)


def test_env_steps_stop_within_a_chunk(tmp_path: Path) -> None:
    overrides = [*SMALL, "stop.updates=null", "stop.env_steps=500"]
    result = train_serial(tmp_path / "run", overrides)
    assert result.outcome.reason == "stop.env_steps = 500 reached"
    assert 500 <= result.outcome.final.env_steps_total < 500 + 4 * 8


def test_the_target_return_stops_the_run_and_delivers_what_passed(tmp_path: Path) -> None:
    # Every policy reaches a return of 5 in CartPole, so the first evaluated version passes twice.
    result = train_serial(tmp_path / "run", [*SMALL, "stop.target_return=5"])
    assert result.outcome.reason == "the target return 5 was reached and confirmed"
    assert result.outcome.solved
    assert result.outcome.best_version == 80


def test_seconds_stop_the_run(tmp_path: Path) -> None:
    result = train_serial(tmp_path / "run", [*SMALL, "stop.updates=null", "stop.seconds=1"])
    assert result.outcome.reason == "stop.seconds = 1 reached"
    assert result.outcome.final.run_seconds >= 1.0


def test_a_used_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train_serial(run_dir, [*SMALL, "stop.updates=8"])
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"already holds a run.*--run-dir"):
        train_serial(run_dir, SMALL)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("owner", "method", "role"),
    [
        (ReplayShard, "insert", "shard 0"),
        (ReplayShard, "exchange", "shard 0"),
        (Learner, "learn", "learner"),
        (EnvActor, "rollout", "actor 0"),
    ],
)
def test_a_bug_ends_the_run_with_its_own_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, role: str
) -> None:
    def with_a_bug(*_: object, **__: object) -> None:
        raise ArithmeticError("planted bug")

    monkeypatch.setattr(owner, method, with_a_bug)
    with pytest.raises(RunFailed) as raised:
        train_serial(tmp_path / "run", SMALL)
    message = str(raised.value)
    assert message.startswith("Traceback (most recent call last):")
    assert "in with_a_bug" in message
    assert "ArithmeticError: planted bug" in message
    # Whose code it was, not who was calling: a shard's bug is met by an actor or the learner.
    assert message.splitlines()[-1].startswith(f"{role} raised the error above")
    assert "ERROR   Traceback" in (tmp_path / "run" / "logs" / "events.log").read_text()


def test_divergence_ends_the_run_and_keeps_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Learner.learn

    def diverge_late(self: Learner, updates: int, seconds: float) -> object:
        if self.step.version >= 80:
            raise DivergedError("mean loss nan")
        return learn(self, updates, seconds)

    monkeypatch.setattr(Learner, "learn", diverge_late)
    with pytest.raises(RunFailed, match="mean loss nan"):
        train_serial(tmp_path / "run", SMALL)
    weights, facts = load_weights(tmp_path / "run" / "weights" / "latest.safetensors")
    assert facts["version"] == "80"
    assert np.isfinite(weights).all()


def test_observations_that_become_nan_end_the_run(tmp_path: Path) -> None:
    overrides = [*SMALL, "env.id=qfleet_test_envs:BrokenAfter", "env.kwargs={steps: 70, how: nan}"]
    with pytest.raises(RunFailed, match=r"(?i)nan|not finite|diverged"):
        train_serial(tmp_path / "run", overrides)


def counted(folder: Path, *overrides: str) -> list[str]:
    """A small run whose environments note in `folder` that they were opened and closed."""
    return [*SMALL, "env.id=qfleet_test_envs:Counted", f"env.kwargs.folder={folder}", *overrides]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_every_environment_is_closed_at_the_end(tmp_path: Path, backend: str) -> None:
    # A serial run makes its roles anew after each checkpoint.
    overrides = counted(tmp_path, f"env.backend={backend}", "checkpoint.every_seconds=0.2")
    train_serial(tmp_path / "run", overrides)
    opened, left = opened_and_left(tmp_path)
    assert opened >= 1 + 4 + 3
    assert left == 0


@pytest.mark.parametrize("trouble", ["an environment fails", "the learner fails", "lanes cannot be made"])
def test_every_environment_is_closed_when_a_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    overrides = counted(tmp_path)
    if trouble == "an environment fails":
        overrides.append("env.kwargs.steps=40")
    if trouble == "the learner fails":
        monkeypatch.setattr(Learner, "__init__", mock.Mock(side_effect=ArithmeticError("planted bug")))
    if trouble == "lanes cannot be made":
        # The fourth: the probe's lane and two of four.
        lanes = itertools.chain([Counted] * 3, [mock.Mock(side_effect=ArithmeticError("planted bug"))])
        monkeypatch.setattr(qfleet_test_envs, "Counted", lambda **kwargs: next(lanes)(**kwargs))
    with pytest.raises(RunFailed):
        train_serial(tmp_path / "run", overrides)
    opened, left = opened_and_left(tmp_path)
    assert opened >= 3
    assert left == 0


def test_a_stack_of_frames_is_learned_from(tmp_path: Path) -> None:
    # The sign that decides the reward was shown two frames ago: without the stack the best return is 0.5.
    result = train_serial(tmp_path / "run", RECALL)
    assert result.outcome.solved
    assert result.outcome.best_return_mean == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_preset_solves_cartpole(tmp_path: Path, seed: int) -> None:
    arguments = [str(preset_paths()["cartpole"]), "--runtime", "serial", "--seed", str(seed)]
    done = run_qfleet("train", *arguments, "--run-dir", str(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the target return 490 was reached and confirmed" in done.stdout


def test_metrics_come_however_often_checkpoints_do(tmp_path: Path) -> None:
    """Each checkpoint begins another life; the newest metrics stay, and new ones come in time."""
    recorder = Recorder()
    train_serial(
        tmp_path / "run", (*SMALL, "checkpoint.every_updates=8", "metrics.every_seconds=0.05"), recorder
    )
    # 25 lives, each shorter than the time between two snapshots.
    assert len(recorder.snapshots) >= 4
    updates = [snapshot.updates_total for snapshot in recorder.snapshots]
    assert updates == sorted(updates)
    # Nothing is there before the first push; from then on no life begins with nothing.
    held = [snapshot.replay_transitions for snapshot in recorder.snapshots]
    assert all(itertools.dropwhile(lambda transitions: transitions == 0, held))
    drawn = [snapshot.drawn_transitions_total or 0 for snapshot in recorder.snapshots]
    assert drawn == sorted(drawn)
    assert drawn[-1] > 8 * 16


def test_checkpoints_wait_for_episodes(tmp_path: Path) -> None:
    """Each checkpoint ends all episodes. If it came before any had ended, their ends would never be seen."""
    recorder = Recorder()
    # Episodes of 200 steps; eight updates take 16 steps of each lane.
    overrides = ("env.id=MountainCar-v0", "env.max_episode_steps=200", "checkpoint.every_updates=8")
    train_serial(tmp_path / "run", (*SMALL, *overrides, "stop.updates=800"), recorder)
    assert recorder.snapshots[-1].episodes_total >= 4
    saved = [event for event in recorder.events if event.startswith("checkpoint")]
    assert 2 <= len(saved) < 20
    (waiting,) = (event for event in recorder.events if "checkpoint.every_updates = 8 is short" in event)
    assert waiting.startswith("warning: a checkpoint of the serial runtime ends all episodes")
