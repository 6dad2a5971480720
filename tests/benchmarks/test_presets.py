"""The presets' study: presets aim beyond their bars, a run through the real commands, resuming, the table."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import presets  # noqa: E402
from benchmarks.presets import Run  # noqa: E402
from benchmarks.recorded_runs import read_runs, write_runs  # noqa: E402
from cluster.api import prepare  # noqa: E402
from cluster.settings.load_config import PRESETS, load_config, preset_for_env, preset_paths  # noqa: E402

ACROBOT = Run("acrobot", 0, "local", 40.0, 300_000, 18_000, 9_000, -67.0, 12.0)


@pytest.mark.parametrize("name", presets.CASES)
def test_a_preset_suits_its_environment_and_aims_beyond_its_bar(name: str) -> None:
    case = presets.CASES[name]
    if name == "lunarlander":
        pytest.importorskip("Box2D", reason="the extra box2d is not installed")
    config = prepare(load_config(PRESETS / f"{name}.yaml")).config
    assert config.stop.target_return is not None
    assert config.stop.target_return > case.bar
    assert config.evaluation.episodes >= 100


@pytest.mark.parametrize(
    ("env_id", "preset"),
    [
        ("Acrobot-v1", "acrobot"),
        ("MountainCar-v0", "mountaincar"),
        ("LunarLander-v3", "lunarlander"),
        ("CartPole-v1", "cartpole"),
    ],
)
def test_an_environment_id_alone_finds_its_preset(env_id: str, preset: str) -> None:
    assert preset_for_env(env_id) == preset_paths()[preset]


def test_a_run_by_the_commands_and_where_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = (
        "stop.updates=5",
        "evaluation.episodes=2",
        "pacing.learning_starts=600",
        "env.max_episode_steps=30",
    )
    data = tmp_path / "presets.json"
    run = presets.one_run("mountaincar", 0, "serial", short)
    assert (run.case, run.seed, run.runtime) == ("mountaincar", 0, "serial")
    assert run.updates >= 5
    assert (run.mean, run.std) == (-30.0, 0.0)  # nobody is at the flag after 30 steps
    write_runs(data, [run])
    assert read_runs(data, Run) == [run]

    asked = []

    def recorded(name: str, seed: int, runtime: str) -> Run:
        asked.append((name, seed, runtime))
        return dataclasses.replace(run, seed=seed)

    monkeypatch.setattr(presets, "one_run", recorded)
    presets.main(["mountaincar", "--seeds", "3", "--runtime", "serial", "--data", str(data)])
    assert asked == [("mountaincar", seed, "serial") for seed in (1, 2)]
    assert len(read_runs(data, Run)) == 3
    assert "| mountaincar | serial | 3 of 3 (≥ -101) |" in capsys.readouterr().out


def test_the_table_counts_seeds_at_the_bar() -> None:
    runs = [ACROBOT, dataclasses.replace(ACROBOT, seed=1, mean=-80.1, seconds=60.0)]
    assert presets.table(runs).splitlines()[2:] == [
        "| acrobot | local | 1 of 2 (≥ -70) | -80.1, -67.0 | 50 (40 to 60) | -76.6 |"
    ]


def test_an_unknown_case_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        presets.main(["pendulum"])
    assert "no case pendulum; there are: acrobot" in capsys.readouterr().err
