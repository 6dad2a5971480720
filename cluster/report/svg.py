"""Charts as inline SVG: sharp at every size, coloured by the page's own light or dark style.

Owns drawing; every text in it is escaped. Must not import torch or ray.
"""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from cluster.report.axes import Axis, axes, tick
from cluster.report.data import Bars, Chart, Series

COLOURS = 8
_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 14, 10, 44
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_BAR, _BAR_GAP, _NAME = 20, 28, 20


def chart_svg(chart: Chart) -> Markup:
    """The chart's plot; its title and legend are the page's."""
    across, up = axes(chart)
    parts = [*_grid(chart, across, up)]
    # What sums up others lies above them.
    for line in sorted(chart.series, key=lambda line: not line.faint):
        parts += _line(line, across, up)
    return _svg(_HEIGHT, f"{chart.title}: {chart.y_label} over {chart.x_label}", parts)


def legend(chart: Chart) -> tuple[tuple[str, int, bool], ...]:
    """Label, colour and whether it is dashed of what the chart shows, each once."""
    loud = [line for line in chart.series if not line.faint] or list(chart.series)
    solid = {line.label for line in loud if not line.dashed}
    # A dashed line beside a solid one of the same label is what the chart's note explains.
    shown = [line for line in loud if not line.dashed or line.label not in solid]
    return tuple(dict.fromkeys((line.label, line.colour % COLOURS, line.dashed) for line in shown))


def bars_svg(bars: Bars) -> Markup:
    """A bar for each run, its parts by their share of the run's seconds."""
    parts = []
    for index, (name, seconds) in enumerate(bars.rows):
        y, total, x = index * (_BAR + _BAR_GAP), sum(seconds), 0.0
        label = f"{name}, {total:,.1f} s"
        parts.append(Markup('<text x="0" y="{}">{}</text>').format(y + 13, label))
        for colour, (phase, spent) in enumerate(zip(bars.phases, seconds, strict=True)):
            width = _WIDTH * spent / total
            box = Markup(
                '<rect class="s{}" x="{:.2f}" y="{}" width="{:.2f}" height="{}"><title>{}</title></rect>'
            )
            tip = f"{phase}: {spent:.1f} s, {spent / total:.0%}"
            parts.append(box.format(colour % COLOURS, x, y + _NAME, width, _BAR, tip))
            x += width
    return _svg(len(bars.rows) * (_BAR + _BAR_GAP), bars.title, parts)


def bars_legend(bars: Bars) -> tuple[tuple[str, int, bool], ...]:
    """Phase, with its share where there is one bar only, and its colour."""
    found = []
    for colour, phase in enumerate(bars.phases):
        seconds = bars.rows[0][1]
        share = f" {seconds[colour] / sum(seconds):.0%}" if len(bars.rows) == 1 else ""
        found.append((f"{phase}{share}", colour % COLOURS, False))
    return tuple(found)


def _svg(height: int, text: str, parts: list[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, height, text, Markup("").join(parts)
    )


def _grid(chart: Chart, across: Axis, up: Axis) -> Iterator[Markup]:
    line = Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    bottom, right = _TOP + _PLOT_HEIGHT, _LEFT + _PLOT_WIDTH
    for value in up.ticks:
        y = _y(up, value)
        yield line.format(_LEFT, y, right, y)
        yield text.format(_LEFT - 6, y + 4, "end", tick(value))
    for value in across.ticks:
        x = _x(across, value)
        yield line.format(x, _TOP, x, bottom)
        yield text.format(x, bottom + 16, "middle", tick(value))
    yield text.format(_LEFT + _PLOT_WIDTH / 2, _HEIGHT - 6, "middle", chart.x_label)
    yield Markup(
        '<text class="axis" transform="translate(12 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(_TOP + _PLOT_HEIGHT / 2, chart.y_label)


def _line(line: Series, across: Axis, up: Axis) -> Iterator[Markup]:
    colour = line.colour % COLOURS
    xs = [_x(across, x) for x in line.xs]
    if line.low:
        there = list(zip(xs, (_y(up, y) for y in line.high), strict=True))
        back = list(zip(xs, (_y(up, y) for y in line.low), strict=True))[::-1]
        yield Markup('<polygon class="band s{}" points="{}"/>').format(colour, _points(there + back))
    kind = " ".join(("line", f"s{colour}", *(["faint"] * line.faint), *(["dashed"] * line.dashed)))
    points = _points(list(zip(xs, (_y(up, y) for y in line.ys), strict=True)))
    yield Markup('<polyline class="{}" points="{}"><title>{}</title></polyline>').format(
        kind, points, line.label
    )


def _points(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + _PLOT_WIDTH * axis.position(value)


def _y(axis: Axis, value: float) -> float:
    return _TOP + _PLOT_HEIGHT * (1.0 - axis.position(value))
