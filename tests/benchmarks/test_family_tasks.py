"""The study of the family's presets: a short run of it, taking it up again, the table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import family_tasks  # noqa: E402
from benchmarks.family_tasks import Run  # noqa: E402
from cluster.settings.load_config import PRESETS, load_config  # noqa: E402


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
    arguments = ["double", "--seeds", "2", "--data", str(tmp_path / "data.json")]
    with pytest.raises(KeyboardInterrupt):
        family_tasks.main(arguments)
    family_tasks.main(arguments)
    tasks = list(family_tasks.TASKS)
    assert played == [
        *(("double", task, 0) for task in tasks),
        *(("double", task, 0) for task in tasks[2:]),
        *(("double", task, 1) for task in tasks),
    ]
    cell = "400 in 2 s"
    assert f"| double | {cell} | {cell} | {cell} |" in capsys.readouterr().out


def test_members_are_compared_with_double_dqn_by_seed() -> None:
    def run(member: str, seed: int, mean: float) -> Run:
        return Run(member, "CartPole-v1", seed, mean, 10, 2.0)

    told = family_tasks.table(
        [run("double", 0, 100.0), run("double", 1, 300.0), run("apex", 1, 350.0), run("apex", 0, 150.0)]
    )
    # Both seeds gain 50 of the range of 500, so the interval has no width.
    assert "| apex | 250 in 2 s (+10.0%, +10.0% to +10.0%) |  |  |" in told


def test_the_parts_switched_on_are_rainbow_and_off_are_double_dqn() -> None:
    def learner_and_actors(preset: str, overrides: tuple[str, ...]) -> object:
        config = load_config(PRESETS / f"{preset}.yaml", overrides)
        return config.learner, config.actors, config.replay.sampling

    rainbow = learner_and_actors("rainbow", ())
    assert (
        learner_and_actors("rainbow", tuple(one for on, _ in family_tasks.PARTS.values() for one in on))
        == rainbow
    )
    base = learner_and_actors(*family_tasks.MEMBERS["double"])
    assert base != rainbow
    for part, (on, _) in family_tasks.PARTS.items():
        preset, changes = family_tasks.STUDY[f"double + {part}"]
        alone = learner_and_actors(preset, changes)
        assert alone not in (base, rainbow)
        others = tuple(one for name, (_, off) in family_tasks.PARTS.items() if name != part for one in off)
        assert alone == learner_and_actors("rainbow", (*others, *on))
