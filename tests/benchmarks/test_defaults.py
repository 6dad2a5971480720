"""The study of defaults: both sides' commands, where it goes on, the verdicts and the table.

Tests benchmarks/default_tasks.py, too.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import default_tasks, defaults  # noqa: E402
from benchmarks.default_tasks import TASKS, Task  # noqa: E402
from benchmarks.defaults import Run, Side, verdict  # noqa: E402
from benchmarks.recorded_runs import read_runs, write_runs  # noqa: E402

TAXI = Run("Taxi", "qfleet", 0, 60.0, 500_000, 7.9, 21.4)


def test_it_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, asked = tmp_path / "defaults.json", []
    write_runs(data, [TAXI])

    def recorded(task: str, side: Side, seed: int, seconds: float) -> Run:
        asked.append((task, side, seed, seconds))
        return (
            Run(task, side, seed, seconds, 1, -200.0) if side == "sb3" else replace(TAXI, seed=seed, mean=7.4)
        )

    monkeypatch.setattr(defaults, "one_run", recorded)
    defaults.main(["Taxi", "--seeds", "0", "1", "--seconds", "60", "--data", str(data)])
    assert asked == [("Taxi", "sb3", 0, 60.0), ("Taxi", "qfleet", 1, 60.0), ("Taxi", "sb3", 1, 60.0)]
    assert len(read_runs(data, Run)) == 4
    assert "| Taxi | 60 | 7.4, 7.9 | -200, -200 | 7.5 | 21 s, 21 s | optimum |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "peer", "expected"),
    [
        ((7.4, 7.7), (8.0, 8.0), "optimum"),
        ((0.3, 0.4), (0.1, 0.2), "better"),
        ((0.3, 0.4), (0.5, 0.6), "worse"),
        ((0.3, 0.4), (0.4, 0.5), "alike"),
        ((0.3,), (), ""),
    ],
)
def test_verdicts(own: tuple[float, ...], peer: tuple[float, ...], expected: str) -> None:
    assert verdict(Task("Taxi-v4", 7.5), own, peer) == expected


def test_a_score_is_the_mean_of_fresh_episodes_that_end() -> None:
    begun: list[int] = []
    env = default_tasks.make_env(TASKS["CliffWalking"])  # it has no step limit
    mean = default_tasks.mean_return(env, lambda *_: 0, lambda: begun.append(1), episodes=2, seed=7)
    assert (mean, len(begun)) == (-default_tasks.MOST_STEPS, 2)
    assert default_tasks.make_env(TASKS["Taxi"]).spec is not None


def test_when_the_optimum_was_confirmed() -> None:
    lines: list[dict[str, Any]] = [
        {"run_seconds": 1.0},
        {"run_seconds": 2.0, "best_return_mean": None},
        {"run_seconds": 3.04, "best_return_mean": 7.4},
        {"run_seconds": 4.04, "best_return_mean": 7.6},
        {"run_seconds": 5.0, "best_return_mean": 7.7},
    ]
    assert defaults._good_seconds(TASKS["Taxi"], lines) == 4.0
    assert defaults._good_seconds(TASKS["Taxi"], lines[:3]) is None
    assert defaults._good_seconds(TASKS["FlappyBird"], lines) is None


@pytest.mark.slow
def test_a_run_of_the_command_is_ended_and_scored() -> None:
    run = defaults.one_run("CliffWalking", "qfleet", 0, 10.0)
    # A fast machine confirms the optimum within these seconds.
    told = replace(run, env_steps=0, mean=0.0, good_seconds=None)
    assert told == Run("CliffWalking", "qfleet", 0, 10.0, 0, 0.0)
    assert run.good_seconds is None or 0.0 < run.good_seconds <= run.seconds
    assert run.env_steps > 0
    assert run.mean <= -13.0
