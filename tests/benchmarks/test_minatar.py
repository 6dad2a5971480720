"""The MinAtar table: what is read of a run, and what a table says of several."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import minatar  # noqa: E402
from benchmarks.minatar import PAPER_DQN, Run, Score, interval, plot, scored, table, updated  # noqa: E402
from benchmarks.recorded_runs import between, read_runs  # noqa: E402
from cluster.settings.load_config import PRESETS, load_config  # noqa: E402


def line(frames: int, training: float | None, greedy: float | None = None) -> dict[str, float | None]:
    return {
        "env_steps_total": frames,
        "run_seconds": frames / 1000,
        "train_return_mean": training,
        "best_return_mean": greedy,
    }


def test_a_run_is_scored_at_the_first_line_at_or_after_each_point() -> None:
    lines = [line(499_999, 1.0), line(500_000, 2.0), line(900_000, 3.0, 4.0), line(1_000_320, 5.0, 6.0)]
    expected = (Score(500_000, 2.0, None), Score(1_000_000, 5.0, 6.0))
    assert scored("Breakout", 1, lines) == Run("Breakout", 1, 1000.3, expected)


def test_a_run_without_a_finished_episode_has_no_score() -> None:
    assert scored("Freeway", 0, [line(600_000, None)]).scores == ()


def test_an_interval_needs_two_seeds() -> None:
    assert interval([]) == ""
    assert interval([12.34]) == "12.3"
    assert interval([2.0, 4.0]) == "3.0 (2.0 to 4.0)"
    assert interval([1.0, 2.0, 4.0, 100.0]).startswith("3.0 (")  # the best and the worst are left out


def test_the_table_has_a_row_for_each_game_and_point_that_was_played() -> None:
    runs = [
        Run("SpaceInvaders", 0, 600.0, (Score(500_000, 20.0, None), Score(1_000_000, 44.0, 50.0))),
        Run("Breakout", 0, 300.0, (Score(500_000, 8.0, 9.5),)),
        Run("SpaceInvaders", 1, 300.0, (Score(500_000, 24.0, 30.0),)),
    ]
    assert table(runs).splitlines()[2:] == [
        "| Breakout | 0.5M | 1 | 8.0 | 9.5 | 10 |",
        "| SpaceInvaders | 0.5M | 2 | 22.0 (20.0 to 24.0) | 30.0 | 43 |",
        "| SpaceInvaders | 1M | 1 | 44.0 | 50.0 | 43 |",
    ]


def test_the_plot_has_a_panel_for_each_game_that_was_played(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [
        Run("Breakout", 0, 300.0, (Score(500_000, 8.0, None),)),
        Run("Freeway", 0, 300.0, (Score(500_000, 8.0, 9.5), Score(1_000_000, 9.0, 10.5))),
        Run("Freeway", 1, 300.0, (Score(500_000, 6.0, 7.5),)),
        Run("Asterix", 0, 1.0, ()),
    ]
    drawings = []
    for name in ("one.svg", "other.svg"):
        plot(runs, tmp_path / name)
        drawings.append((tmp_path / name).read_text(encoding="utf-8"))
    assert drawings[0] == drawings[1]
    titles = [game for game in PAPER_DQN if f"<!-- {game} -->" in drawings[0]]
    assert titles == ["Breakout", "Freeway"]


def test_runs_are_added_to_the_file_in_order(tmp_path: Path) -> None:
    data = tmp_path / "minatar.json"
    for game, seed in (("Freeway", 1), ("Breakout", 0), ("Freeway", 0)):
        with updated(data) as runs:
            runs.append(Run(game, seed, 1.0, ()))
    assert [(run.game, run.seed) for run in read_runs(data, Run)] == [
        ("Breakout", 0),
        ("Freeway", 0),
        ("Freeway", 1),
    ]


def test_scores_stay_where_a_run_begins_again_and_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "minatar.json"
    before = Run("Breakout", 0, 9.0, (Score(500_000, 8.0, None), Score(1_000_000, 9.0, None)))
    with updated(data) as runs:
        runs.append(before)
    longer = Run("Breakout", 0, 5.0, (*before.scores, Score(2_000_000, 7.0, None)))
    for played, kept in ((replace(before, scores=before.scores[:1]), before), (longer, longer)):
        monkeypatch.setattr(minatar, "one_run", lambda *_, played=played: played)
        monkeypatch.setattr(minatar, "plot", lambda *_: None)
        minatar.main(["Breakout", "--seeds", "0", "--data", str(data)])
        assert read_runs(data, Run) == [kept]


def test_the_page_shows_the_table_of_the_data() -> None:
    page = minatar.PAGE.read_text(encoding="utf-8")
    runs = read_runs(minatar.DATA, Run)
    assert between(page, minatar.TABLE_BEGINS, minatar.TABLE_ENDS, table(runs)) == page
    assert {run.game for run in runs} <= set(PAPER_DQN)


def test_an_unknown_game_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        minatar.main(["Pong"])
    assert "no game Pong; there are: Asterix" in capsys.readouterr().err


def test_a_run_goes_on_to_more_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[str] = []

    def small(path: Path, overrides: list[str]) -> object:
        wanted.extend(overrides)
        return load_config(PRESETS / "cartpole.yaml", [one for one in overrides if "env.id" not in one])

    monkeypatch.setattr(minatar, "load_config", small)
    monkeypatch.setattr(minatar, "POINTS", (4_000, 8_000))
    first = minatar.one_run("Breakout", 0, 4_000, tmp_path / "run")
    assert [score.frames for score in first.scores] == [4_000]
    second = minatar.one_run("Breakout", 0, 8_000, tmp_path / "run")
    assert [score.frames for score in second.scores] == [4_000, 8_000]
    assert second.scores[0] == first.scores[0]
    assert "env.id=MinAtar/Breakout-v1" in wanted
