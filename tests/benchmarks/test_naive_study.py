"""The naive study: intervals against published values, verdicts, variants, a short run, table and plot."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import gymnasium as gym
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import naive_study  # noqa: E402
from benchmarks.naive_study import Run  # noqa: E402
from benchmarks.recorded_runs import between, read_runs, write_runs  # noqa: E402
from cluster.settings.config import RunConfig, check  # noqa: E402
from cluster.settings.load_config import PRESETS, load_config  # noqa: E402


def a_run(**changes: object) -> Run:
    run = Run("naive", 0, 1.0, 100, 50.0, 60.0, 55.0, 200.0, 150.0, ((50, 200.0), (100, 150.0)))
    return dataclasses.replace(run, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # Brown, Cai and DasGupta 2001, doi:10.1214/ss/1009213286: k / (k + z^2) ends; the middle by hand.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 10, 0.0179, 0.4042)],
)
def test_wilson_interval(count: int, of: int, low: float, high: float) -> None:
    assert naive_study.wilson_interval(count, of) == pytest.approx((low, high), abs=1e-4)


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    assert naive_study.bootstrap_interval([3.0] * 10) == (3.0, 3.0)
    low, high = naive_study.bootstrap_interval([0.0, 10.0] * 50)
    # Means of 100 draws of 0 or 10 have sd 0.5: the interval is 5 -+ 0.98, up to the grid of tenths.
    assert (low, high) == pytest.approx((4.02, 5.98), abs=0.11)
    assert naive_study.bootstrap_interval([0.0, 10.0] * 50) == (low, high)


def test_verdicts() -> None:
    assert [a_run(greatest_q=q).diverged for q in (200.0, 200.1, math.inf, math.nan)] == [
        False,
        True,
        True,
        True,
    ]
    assert [a_run(final=mean).collapsed for mean in (200.0, 100.0, 99.9)] == [False, False, True]


def settings(config: RunConfig) -> dict[str, object]:
    return {
        f"{section.name}.{field.name}": getattr(getattr(config, section.name), field.name)
        for section in dataclasses.fields(config)
        for field in dataclasses.fields(getattr(config, section.name))
    }


@pytest.mark.parametrize("variant", naive_study.VARIANTS)
def test_a_variant_differs_from_naive_in_what_it_names_only(variant: str) -> None:
    path = PRESETS / "cartpole_naive.yaml"
    overrides = naive_study.VARIANTS[variant]
    config, naive = load_config(path, overrides), load_config(path)
    check(config)
    changed = {name for name, value in settings(config).items() if value != settings(naive)[name]}
    assert changed == {override.partition("=")[0] for override in overrides}


def test_naive_is_the_fit_without_cures() -> None:
    naive = load_config(PRESETS / "cartpole_naive.yaml")
    assert naive.learner.target_update_updates == 1
    assert naive.learner.max_grad_norm is None
    assert not naive.learner.double
    assert naive.actors.envs_per_actor == naive.actors.n_step == 1
    assert naive.replay.capacity == 64
    assert naive.stop.env_steps == 20_000 == load_config(None, [naive_study.REPLAY]).replay.capacity


def test_an_environment_that_never_ends_differs_in_that_alone() -> None:
    ours, plain = naive_study.cartpole_that_never_ends(), gym.make("CartPole-v1")
    assert ours.reset(seed=3)[0].tolist() == plain.reset(seed=3)[0].tolist()
    over = False
    while not over:
        observation, reward, terminated, truncated, _ = plain.step(0)
        same, same_reward, ends, truncated, _ = ours.step(0)
        over = terminated or truncated
        assert (same.tolist(), same_reward, ends, truncated) == (observation.tolist(), reward, False, over)
    assert terminated  # so there was an end to hide


def test_a_short_run_and_what_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {name: naive_study.VARIANTS[name] for name in ("naive", "all four, bootstrap at ends")}
    monkeypatch.setattr(naive_study, "VARIANTS", variants)
    real, calls = naive_study.one_run, []

    def short_run(variant: str, seed: int) -> Run:
        calls.append((variant, seed))
        return real(
            variant, seed, ["stop.env_steps=200", "evaluation.every_updates=20", "evaluation.episodes=2"]
        )

    monkeypatch.setattr(naive_study, "one_run", short_run)
    data = tmp_path / "study.json"
    naive_study.main(["--seeds", "1", "--data", str(data)])
    assert calls == [(name, 0) for name in variants]
    runs = read_runs(data, Run)
    for run in runs:
        assert run.updates > 40
        assert 1.0 < run.start_return < 100.0
        assert run.best == max(mean for _, mean in run.evaluations) >= run.final == run.evaluations[-1][1]
    picture = data.with_suffix(".svg").read_bytes()
    assert b"all four, bootstrap at ends" in picture or b"<svg" in picture

    naive_study.main(["--seeds", "1", "--data", str(data)])
    assert len(calls) == 2, "runs in the file are not repeated"
    assert data.with_suffix(".svg").read_bytes() == picture, "the same data give the same plot"
    assert "| naive | 1 | 0 (0 to 79 %) |" in capsys.readouterr().out


def test_an_update_that_was_not_finite_counts_as_diverged_and_survives_the_file(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs.json", [a_run(greatest_q=math.inf)])
    (run,) = read_runs(tmp_path / "runs.json", Run)
    assert run.diverged


def test_the_lesson_shows_the_table_of_the_data() -> None:
    runs = read_runs(naive_study.DATA, Run)
    text = naive_study.LESSON.read_text(encoding="utf-8")
    assert between(text, naive_study.TABLE_BEGINS, naive_study.TABLE_ENDS, naive_study.table(runs)) == text
    assert naive_study.table(runs) in text
    with pytest.raises(ValueError, match="lacks"):
        between("no marks", naive_study.TABLE_BEGINS, naive_study.TABLE_ENDS, "")
    assert len(json.loads(naive_study.DATA.read_text(encoding="utf-8"))) == len(runs) > 0
