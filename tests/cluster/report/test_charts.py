"""Charts show the numbers of their runs, and over seeds their interquartile mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qfleet_recorded_runs import double_and_single, synthetic

from cluster.report.charts import Bars, Chart, bootstrap, charts, iqm, thinned
from cluster.report.drawing import draw
from cluster.report.runs import groups_of, read_run


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    values = np.array([[100.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [-100.0]])
    assert iqm(values)[0] == np.mean([2.0, 3.0, 4.0, 5.0])
    # Below four seeds nothing is left out.
    assert iqm(values[:3])[0] == pytest.approx(np.mean([100.0, 1.0, 2.0]))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = bootstrap(rng.normal(3.0, 1.0, size=(20, 1)), iqm)
        hits += int(low[0] <= 3.0 <= high[0])
    # 190 of 200 are foretold; percentile intervals of 20 values are a little narrow, say 184, less 4 sigma.
    assert hits / 200 > 0.84
    assert hits < 200


def test_the_interval_is_that_of_a_naive_bootstrap() -> None:
    values = np.random.default_rng(2).normal(size=(9, 3))
    low, high = bootstrap(values, iqm)
    rng = np.random.default_rng(3)
    drawn = np.array([iqm(values[rng.integers(9, size=9)]) for _ in range(20_000)])
    np.testing.assert_allclose(low, np.percentile(drawn, 2.5, axis=0), atol=0.1)
    np.testing.assert_allclose(high, np.percentile(drawn, 97.5, axis=0), atol=0.1)


def test_a_group_is_shown_by_its_seeds_and_their_mean(tmp_path: Path) -> None:
    groups = groups_of([read_run(path) for path in double_and_single(tmp_path)])
    (training,) = [chart for chart in charts(groups) if chart.title == "Training return"]
    assert isinstance(training, Chart)
    faint = [line for line in training.series if line.style == "faint"]
    solid = [line for line in training.series if line.style == "solid"]
    assert (len(faint), len(solid)) == (8, 2)
    # Seeds 0 to 3 lie at index + seed; the IQM over four is the mean of the middle two: index + 1.5.
    steps, returns = np.array(solid[0].xs), np.array(solid[0].ys)
    np.testing.assert_allclose(returns, steps / 100 + 1.5)
    assert np.all(np.array(solid[0].low) <= returns)
    assert np.all(returns <= np.array(solid[0].high))


def test_time_by_phase_is_the_last_total(tmp_path: Path) -> None:
    found = charts(groups_of([read_run(synthetic(tmp_path / "run"))]))
    (bars,) = [chart for chart in found if isinstance(chart, Bars)]
    assert (bars.title, bars.phases, bars.runs) == (
        "Time of the learner",
        ("wait", "update"),
        (("run", (49.0, 147.0)),),
    )


def test_long_runs_are_thinned_without_losing_their_mean() -> None:
    xs, ys = np.arange(100_000.0), np.random.default_rng(0).normal(5.0, 1.0, 100_000)
    few_xs, few_ys = thinned(xs, ys)
    assert len(few_xs) == len(few_ys) == 300
    assert np.mean(few_ys) == pytest.approx(ys.mean(), abs=0.01)
    assert list(few_xs) == sorted(few_xs)


def test_the_mean_goes_on_dashed_where_the_shortest_seed_has_ended(tmp_path: Path) -> None:
    runs = [
        synthetic(tmp_path / f"{seed}", seed=seed, lines=lines) for seed, lines in enumerate((20, 50, 50))
    ]
    drawn = charts(groups_of([read_run(path) for path in runs]))
    (chart,) = [chart for chart in drawn if chart.title == "Training return"]
    assert isinstance(chart, Chart)
    (mean,) = [line for line in chart.series if line.style == "solid"]
    (going_on,) = [line for line in chart.series if line.style == "dashed"]
    assert mean.xs[-1] == 1_900
    assert 1_900 < going_on.xs[0] < going_on.xs[-1] == 4_900
    # Seeds 1 and 2: their returns are 49 + seed at the end.
    assert going_on.ys[-1] == pytest.approx(50.5)
    assert "go on after the shortest" in " ".join(chart.note.split())


def test_every_chart_of_a_group_shows_seeds_and_mean_over_the_axis_that_is_asked_for(tmp_path: Path) -> None:
    groups = groups_of([read_run(path) for path in double_and_single(tmp_path)])
    for chart in charts(groups, "updates"):
        if isinstance(chart, Chart) and chart.title != "Memory":
            assert chart.x_label == "updates"
            styles = [line.style for line in chart.series]
            assert styles.count("faint") == 8, chart.title
            assert styles.count("solid") == 2, chart.title
    (greedy,) = [chart for chart in charts(groups, "time") if chart.title == "Greedy return"]
    assert isinstance(greedy, Chart)
    # Versions 0, 100 and 200 were newest at 0, 10 and 20 s.
    assert max(line.xs[-1] for line in greedy.series) == pytest.approx(20.0)


def test_shares_go_from_0_to_1(tmp_path: Path) -> None:
    run = read_run(synthetic(tmp_path / "run", extra={"learner_wait_share": 0.25}))
    (chart,) = [each for each in charts(groups_of([run])) if each.title == "Learner waiting for data"]
    upright = [label.text for label in draw(chart).labels if label.align == "right"]
    assert (upright[0], upright[-1]) == ("0", "1")
