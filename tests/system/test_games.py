"""Presets of games from the command line to the end of a run."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cluster.api import prepare, train
from cluster.cli import run
from cluster.engines.machine import Machine
from cluster.settings.load_config import load_config, preset_for_env, preset_paths
from cluster.settings.plan import make_plan
from cluster.show.view import make_view

SMALL = Machine(cores=2, memory_bytes=25 * 10**9, available_bytes=23 * 10**9, shm_bytes=12 * 10**9)
TINY = (
    "run.runtime=serial",
    "actors.envs_per_actor=4",
    "actors.steps_per_chunk=20",
    "replay.capacity=2_000",
    "learner.batch_size=8",
    "learner.target_update_env_steps=100",
    "pacing.learning_starts=300",
    "evaluation.every_updates=150",
    "evaluation.episodes=2",
    "stop.updates=200",
)
# The smallest images that the network takes, of episodes that begin and end alike: for speed only.
SHORT_ATARI = (
    *TINY,
    "env.kwargs.img_height=36",
    "env.kwargs.img_width=36",
    "env.max_episode_steps=40",
)
silent = partial(make_view, stream=io.StringIO())


# Images of 36 pixels leave maps of 5; its full width takes long.
SHORT_BTR = ("learner.pool_size=5", "learner.impala_width=1")


@pytest.mark.parametrize("name", ["atari", "atari_apex", "atari_rainbow", "atari_btr"])
def test_atari_presets_train(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    own = SHORT_BTR if name == "atari_btr" else ()
    config = load_config(preset_paths()[name], [*SHORT_ATARI, *own, "env.id=ALE/Breakout-v5"])
    final = train(config, tmp_path / "run", view=silent).outcome.final
    assert final.updates_total >= 200
    assert final.skipped_updates_total == 0
    (line, *_) = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    # Whole lives: no life lost in an episode of 40 steps ends it.
    assert json.loads(line)["lengths"] == [40, 40]


def test_the_minatar_preset_trains(tmp_path: Path) -> None:
    pytest.importorskip("minatar")
    config = load_config(preset_paths()["minatar"], [*TINY, "env.max_episode_steps=40"])
    final = train(config, tmp_path / "run", view=silent).outcome.final
    assert final.updates_total >= 200
    assert final.skipped_updates_total == 0


def test_btr_has_the_rhythm_of_its_paper() -> None:
    pytest.importorskip("ale_py")
    config = prepare(load_config(preset_paths()["atari_btr"], ["run.runtime=local"])).config
    acting, learner = config.actors, config.learner
    lanes = acting.num_actors * acting.envs_per_actor
    assert lanes == 64
    # One update each 64 env steps, a target copy each 500 updates.
    assert learner.batch_size / config.pacing.samples_per_insert == lanes
    assert config.target_update_updates == 500
    assert config.stop.env_steps is not None
    updates = (config.stop.env_steps - config.pacing.learning_starts) / lanes
    assert config.replay.importance_anneal_updates == pytest.approx(updates, rel=1e-3)


@pytest.mark.parametrize("name", ["atari", "atari_apex", "atari_btr", "atari_rainbow", "minatar"])
def test_games_presets_name_their_protocol(name: str) -> None:
    text = preset_paths()[name].read_text(encoding="utf-8")
    protocol = text[text.index("# Protocol: ") : text.index("\nenv:")]
    sticky = load_config(preset_paths()[name]).env.kwargs.get("repeat_action_probability", 0.1)
    assert ("no sticky" if sticky == 0.0 else f"sticky actions ({sticky})") in protocol
    assert "minimal actions" in protocol


@pytest.mark.parametrize("name", ["atari", "atari_apex", "atari_rainbow", "atari_btr", "minatar"])
def test_presets_fit_a_small_machine(name: str) -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("minatar")
    prepared = prepare(load_config(preset_paths()[name], ["run.runtime=local"]))
    plan = make_plan(prepared.config, prepared.spec, SMALL)
    assert plan.problems == ()
    assert plan.run_bytes < 6 * 10**9
    small = replace(SMALL, available_bytes=6 * 10**8)
    (problem,) = make_plan(prepared.config, prepared.spec, small).problems
    assert "replay.capacity" in problem


def test_uncompressed_frames_beyond_the_memory_are_refused_with_the_knob() -> None:
    pytest.importorskip("ale_py")
    overrides = ["replay.compression=none", "replay.capacity=4_000_000", "run.runtime=local"]
    prepared = prepare(load_config(preset_paths()["atari"], overrides))
    (problem,) = make_plan(prepared.config, prepared.spec, SMALL).problems
    assert "set replay.compression=lz4" in problem


@pytest.mark.parametrize(
    ("env_id", "preset"),
    [
        ("ALE/Pong-v5", "atari"),
        ("ALE/MontezumaRevenge-v5", "atari"),
        ("MinAtar/Breakout-v1", "minatar"),
        ("MinAtar/SpaceInvaders-v0", "minatar"),
    ],
)
def test_a_family_of_games_shares_a_preset(env_id: str, preset: str) -> None:
    assert preset_for_env(env_id) == preset_paths()[preset]


def test_the_preset_is_taken_and_said_and_overridden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ale_py")
    given = [f"--set={override}" for override in (*SHORT_ATARI, "stop.updates=10", "actors.reward_clip=5")]
    where = ["--run-dir", str(tmp_path / "run")]
    assert run(["train", "ALE/Freeway-v5", *where, *given]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].startswith("preset atari (qfleet presets atari shows it")
    assert "% of human" in shown.splitlines()[-2]
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.env.id, config.actors.life_loss_ends_episode) == ("ALE/Freeway-v5", True)
    assert (config.actors.reward_clip, config.learner.batch_size) == (5.0, 8)

    assert run(["eval", str(tmp_path / "run"), "--episodes", "2", "--json"]) == 0
    played = json.loads(capsys.readouterr().out)
    assert played["human_normalized"] == pytest.approx(played["mean"] / 29.6)
    assert (played["random_return"], played["human_return"]) == (0.0, 29.6)
    assert run(["eval", str(tmp_path / "run"), "--episodes", "2"]) == 0
    assert "% of human (0 % is random play)" in capsys.readouterr().out
