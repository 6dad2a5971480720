"""The study of long runs: its settings hold, and what a run directory holds is read as it stands."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import learning_curves  # noqa: E402
from benchmarks.learning_curves import CASES, Run, read_run, sentence  # noqa: E402
from benchmarks.recorded_runs import read_runs, write_runs  # noqa: E402
from cluster.api import train  # noqa: E402
from cluster.settings.load_config import PRESETS, load_config  # noqa: E402


@pytest.mark.parametrize("name", CASES)
def test_what_is_set_beside_a_preset_exists(name: str) -> None:
    config = load_config(PRESETS / f"{CASES[name].preset}.yaml", CASES[name].overrides)
    assert CASES[name].paper_dqn is None or config.stop.target_return == pytest.approx(
        learning_curves.MARGIN * (CASES[name].paper_dqn or 0.0)
    )


def test_a_run_is_read_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["run.runtime=serial", "stop.updates=400", "metrics.every_seconds=0.001"]
    train(load_config(PRESETS / "cartpole.yaml", wanted), tmp_path / "run")
    monkeypatch.setattr(learning_curves, "MOST_POINTS", 5)
    run = read_run("breakout", 3, tmp_path / "run")
    assert (run.case, run.seed, run.updates) == ("breakout", 3, 400)
    assert 2 <= len(run.curve) <= 5
    assert run.curve[-1] == (run.env_steps, run.seconds, run.train_return)
    assert all(before[0] <= after[0] for before, after in pairwise(run.curve))
    write_runs(tmp_path / "data.json", [run])
    assert [sentence(again) for again in read_runs(tmp_path / "data.json", Run)] == [sentence(run)]


def test_a_run_is_told_against_the_paper() -> None:
    run = Run("breakout", 0, 700_000, 45_000, 600.0, 11.0, 12.5, ((700_000, 600.0, 11.0),), ())
    assert sentence(run).endswith("after 700,000 frames and 600 s; beats the paper's DQN (10)")
    pong = Run("pong", 0, 1_000, 45_000, 600.0, -11.0, None, ((1_000, 600.0, -11.0),), ())
    assert sentence(pong).endswith("after 4,000 frames and 600 s")


def test_what_a_resumed_run_played_again_counts_once(tmp_path: Path) -> None:
    steps = [10, 20, 30, 40, 20, 30, 35]  # killed behind 40, and resumed from 10
    versions = [(1, False), (1, True), (2, False), (1, False), (3, False)]
    (tmp_path / "config.yaml").touch()
    (tmp_path / "resumes.jsonl").touch()
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            f'{{"env_steps_total": {count}, "updates_total": 1, '
            f'"run_seconds": {at}, "train_return_mean": {at}}}\n'
            for at, count in enumerate(steps)
        )
    )
    (tmp_path / "evaluations.jsonl").write_text(
        "".join(
            f'{{"version": {version}, "return_mean": {at}.5, "confirms": {str(confirms).lower()}}}\n'
            for at, (version, confirms) in enumerate(versions)
        )
    )
    run = read_run("pong", 0, tmp_path)
    assert run.curve == ((10, 0, 0), (20, 4, 4), (30, 5, 5), (35, 6, 6))
    assert run.evaluations == ((1, 3.5), (3, 4.5))
