"""The study of the family's presets: a short run of it, taking it up again, the table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import family_tasks  # noqa: E402
from benchmarks.family_tasks import Run  # noqa: E402


def test_a_short_run_is_scored_by_its_delivered_weights() -> None:
    short = ("stop.updates=2", "pacing.learning_starts=600", "evaluation.every_updates=2")
    limits = ("evaluation.episodes=2", "env.max_episode_steps=30")
    run = family_tasks.one_run("modern", "Acrobot-v1", 0, (*short, *limits))
    # Nobody swings up within 30 steps.
    assert (run.member, run.task, run.mean) == ("modern", "Acrobot-v1", -30.0)
    assert run.updates >= 2


def test_the_study_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played: list[tuple[str, str, int]] = []

    def one_run(member: str, task: str, seed: int) -> Run:
        played.append((member, task, seed))
        if len(played) == 3:
            raise KeyboardInterrupt
        return Run(member, task, seed, 400.0 + seed, 10, 2.0)

    monkeypatch.setattr(family_tasks, "one_run", one_run)
    arguments = ["rainbow", "--seeds", "2", "--data", str(tmp_path / "data.json")]
    with pytest.raises(KeyboardInterrupt):
        family_tasks.main(arguments)
    family_tasks.main(arguments)
    tasks = list(family_tasks.TASKS)
    assert played == [
        *(("rainbow", task, 0) for task in tasks),
        *(("rainbow", task, 0) for task in tasks[2:]),
        *(("rainbow", task, 1) for task in tasks),
    ]
    cell = "400, 401 in 2 s"
    assert f"| `rainbow.yaml` | {cell} | {cell} | {cell} |" in capsys.readouterr().out
