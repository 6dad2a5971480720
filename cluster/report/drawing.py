"""Drawings of charts: positioned paths and labels, from which both the page and PNG files are made.

Owns layout and colors; must not import torch, ray or matplotlib.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.report.axes import linear, tick, vertical
from cluster.report.charts import Bars, Chart, LineStyle

LIGHT = ("#1f6fb4", "#d1661c", "#2a8c4a", "#b5322c", "#7b54a8", "#8a6a4f", "#b9488f", "#5d6b7a")
DARK = ("#6db1ee", "#f4a261", "#6fcf8b", "#f2817a", "#b79ae0", "#c9a98c", "#e68cc3", "#a7b3c1")
"""Colors of a chart on a light and on a dark page."""

WIDTH = 440
_HEIGHT = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, WIDTH - 14, 10, _HEIGHT - 44
_BAR_HEIGHT, _BAR_TOP, _BAR_DISTANCE = 20, 20, 48

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Path:
    """A line through points or, for a band or a bar, the area that they enclose.

    color: an index into LIGHT and DARK. tip: the text that a browser shows at the pointer.
    """

    points: Points
    style: LineStyle | Literal["grid", "band", "bar"]
    color: int = 0
    tip: str = ""

    @property
    def filled(self) -> bool:
        """Whether it is an area."""
        return self.style in ("band", "bar")


@dataclass(frozen=True)
class Label:
    """A text. x, y: left end, center or right end of its baseline, by `align`. turned: reads upwards."""

    x: float
    y: float
    text: str
    align: Literal["left", "center", "right"] = "left"
    turned: bool = False


@dataclass(frozen=True)
class Key:
    """An entry of the legend."""

    label: str
    color: int
    style: LineStyle = "solid"


@dataclass(frozen=True)
class Drawing:
    """A chart in a box of WIDTH by height units, y downwards; later paths cover earlier ones.

    legend: empty if the chart has a single line. text: a description for screen readers.
    """

    chart: Chart | Bars
    text: str
    height: int
    paths: tuple[Path, ...]
    labels: tuple[Label, ...]
    legend: tuple[Key, ...]


def draw(chart: Chart | Bars) -> Drawing:
    """Lays out a chart."""
    return _draw_lines(chart) if isinstance(chart, Chart) else _draw_bars(chart)


def _draw_lines(chart: Chart) -> Drawing:
    xs = [x for line in chart.series for x in line.xs]
    ys = [y for line in chart.series for y in (*line.ys, *line.low, *line.high)]
    across = linear(min(xs), max(xs), pad=0.0)
    up = vertical(min(ys), max(ys))
    if chart.share and min(ys) >= 0.0 and max(ys) <= 1.0:
        up = linear(0.0, 1.0, pad=0.0)

    def place(xs: Sequence[float], ys: Sequence[float]) -> Points:
        left = (_LEFT + (_RIGHT - _LEFT) * across.position(x) for x in xs)
        top = (_BOTTOM - (_BOTTOM - _TOP) * up.position(y) for y in ys)
        return tuple(zip(left, top, strict=True))

    paths, labels = [], []
    for value, (x, y) in zip(across.ticks, place(across.ticks, [up.low] * len(across.ticks)), strict=True):
        paths.append(Path(((x, y), (x, _TOP)), "grid"))
        labels.append(Label(x, y + 16, tick(value), "center"))
    for value, (x, y) in zip(up.ticks, place([across.low] * len(up.ticks), up.ticks), strict=True):
        paths.append(Path(((x, y), (_RIGHT, y)), "grid"))
        labels.append(Label(x - 6, y + 4, tick(value), "right"))
    labels.append(Label((_LEFT + _RIGHT) / 2, _HEIGHT - 6, chart.x_label, "center"))
    labels.append(Label(12, (_TOP + _BOTTOM) / 2, chart.y_label, "center", turned=True))
    # Faint lines come first, so that their aggregate covers them.
    for line in sorted(chart.series, key=lambda line: line.style != "faint"):
        color = line.color % len(LIGHT)
        if line.low:
            paths.append(Path(place(line.xs, line.high) + place(line.xs, line.low)[::-1], "band", color))
        paths.append(Path(place(line.xs, line.ys), line.style, color, line.label))
    text = f"{chart.title}: {chart.y_label} over {chart.x_label}"
    return Drawing(chart, text, _HEIGHT, tuple(paths), tuple(labels), _legend(chart))


def _legend(chart: Chart) -> tuple[Key, ...]:
    shown = [line for line in chart.series if line.style != "faint"] or chart.series
    solid = {line.label for line in shown if line.style != "dashed"}
    # The note explains a dashed line that has the label of a solid one.
    shown = [line for line in shown if line.style != "dashed" or line.label not in solid]
    keys = tuple(dict.fromkeys(Key(line.label, line.color % len(LIGHT), line.style) for line in shown))
    return keys if len(keys) > 1 else ()


def _draw_bars(bars: Bars) -> Drawing:
    paths, labels = [], []
    for index, (name, seconds) in enumerate(bars.runs):
        left, top, total = 0.0, index * _BAR_DISTANCE + _BAR_TOP, sum(seconds)
        labels.append(Label(left, top - 7, f"{name}, {total:,.1f} s"))
        for color, (phase, spent) in enumerate(zip(bars.phases, seconds, strict=True)):
            right, bottom = left + WIDTH * spent / total, top + _BAR_HEIGHT
            corners = ((left, top), (right, top), (right, bottom), (left, bottom))
            tip = f"{phase}: {spent:.1f} s, {spent / total:.0%}"
            paths.append(Path(corners, "bar", color % len(LIGHT), tip))
            left = right
    (_, first), *others = bars.runs
    shares = ["" if others else f" {spent / sum(first):.0%}" for spent in first]
    legend = tuple(
        Key(f"{phase}{share}", color % len(LIGHT))
        for color, (phase, share) in enumerate(zip(bars.phases, shares, strict=True))
    )
    return Drawing(bars, bars.title, len(bars.runs) * _BAR_DISTANCE, tuple(paths), tuple(labels), legend)
