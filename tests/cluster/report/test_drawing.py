"""Drawings: everything lies where its value is, and a chart says what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.report.charts import Bars, Chart, Series, charts
from cluster.report.drawing import WIDTH, Key, draw
from cluster.report.runs import groups_of, read_run


def chart_of(*series: Series) -> Chart:
    return Chart("Learning", "t", "x", "y", series)


def test_no_chart_is_empty_and_each_says_what_it_shows(real: Path) -> None:
    for chart in charts(groups_of([read_run(real)])):
        assert chart.title
        drawing = draw(chart)
        texts = [label.text for label in drawing.labels]
        if isinstance(chart, Chart):
            assert max(len(line.xs) for line in chart.series) > 1
            assert chart.x_label
            assert chart.y_label
            assert {chart.x_label, chart.y_label} <= set(texts)
            labels = {line.label for line in chart.series}
            assert {key.label for key in drawing.legend} == (labels if len(labels) > 1 else set())
        else:
            assert all(sum(seconds) > 0 for _, seconds in chart.runs)
            assert len(drawing.legend) == len(chart.phases)
        for path in drawing.paths:
            assert all(0 <= x <= WIDTH + 1e-6 and 0 <= y <= drawing.height for x, y in path.points)


def test_a_line_is_drawn_where_its_values_are() -> None:
    drawing = draw(chart_of(Series("a", 0, (0.0, 10.0), (0.0, 4.0))))
    (line,) = [path for path in drawing.paths if path.style == "solid"]
    (x0, y0), (x1, y1) = line.points
    at = {(label.align, label.text): (label.x, label.y) for label in drawing.labels}
    assert y1 < y0, "up is more"
    assert x0 == at["center", "0"][0]
    assert x1 == at["center", "10"][0]
    # Texts are set 4 below the height of their tick.
    assert y0 == pytest.approx(at["right", "0"][1] - 4)
    assert y1 == pytest.approx(at["right", "4"][1] - 4)


def test_a_line_that_sums_up_others_covers_them_and_alone_is_in_the_legend() -> None:
    xs = (0.0, 1.0)
    drawing = draw(
        chart_of(
            Series("a (2 seeds)", 0, xs, xs, xs, xs),
            Series("a", 0, xs, xs, style="faint"),
            Series("b", 9, xs, xs),
            Series("b", 9, xs, xs, style="dashed"),
            Series("target", 2, xs, xs, style="dashed"),
        )
    )
    drawn = [path.style for path in drawing.paths if path.style != "grid"]
    assert drawn == ["faint", "band", "solid", "solid", "dashed", "dashed"]
    assert drawing.legend == (Key("a (2 seeds)", 0), Key("b", 1), Key("target", 2, "dashed"))


def test_a_bar_is_divided_by_time() -> None:
    drawing = draw(Bars("Speed", "t", ("wait", "update"), (("one", (1.0, 3.0)), ("two", (2.0, 0.0)))))
    widths = [path.points[1][0] - path.points[0][0] for path in drawing.paths]
    assert widths == [WIDTH / 4, WIDTH * 3 / 4, WIDTH, 0]
    assert [label.text for label in drawing.labels] == ["one, 4.0 s", "two, 2.0 s"]
    assert [key.label for key in drawing.legend] == ["wait", "update"]
    alone = draw(Bars("Speed", "t", ("wait", "update"), (("one", (1.0, 3.0)),)))
    assert [key.label for key in alone.legend] == ["wait 25%", "update 75%"]
