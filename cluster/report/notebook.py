"""A live picture of a run in a notebook: a callback that draws returns and shows the main numbers.

Owns its cell output; must not import torch or ray.
"""

from __future__ import annotations

import time
from typing import Any

import jinja2

from cluster.metrics.snapshot import Snapshot
from cluster.record.callbacks import RunControl
from cluster.record.run_events import Ended, Evaluated, Measured, RunEvent
from cluster.report.charts import Chart, Series
from cluster.report.drawing import LIGHT, WIDTH, Drawing, draw
from cluster.wording import duration, short

_GAP_SECONDS = 1.0
_TEMPLATE = """\
<div style="max-width: 44rem; font: 14px sans-serif">
<p>{{ text }}</p>
{% if drawing %}
<svg viewBox="0 0 {{ width }} {{ drawing.height }}" role="img" aria-label="{{ drawing.text }}">
{% for path in drawing.paths %}
{% set grid = path.style == "grid" %}
<polyline fill="none" points="{{ path.points|points }}" stroke-width="{{ 1 if grid else 2 }}"
  stroke="{{ "#d9dde4" if grid else colors[path.color] }}" />
{% endfor %}
{% for label in drawing.labels %}
<text fill="#5b6474" font-size="12" text-anchor="{{ anchors[label.align] }}"
  transform="translate({{ label.x|round(1) }} {{ label.y|round(1) }}){{ " rotate(-90)" if label.turned }}"
  >{{ label.text }}</text>
{% endfor %}
</svg>
{% for key in drawing.legend %}
<span style="color: {{ colors[key.color] }}">&#9644; {{ key.label }}</span>
{% endfor %}
{% endif %}
</div>"""
_ANCHORS = {"left": "start", "center": "middle", "right": "end"}


class LivePlot:
    """A callback for notebooks: redraws its cell at most once a second, and at the end.

    Raises ModuleNotFoundError when it is made outside of IPython.
    """

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._training: list[tuple[float, float]] = []
        self._greedy: list[tuple[float, float]] = []
        self._last = Snapshot()
        self._drawn = 0.0
        self._cell: Any = display(HTML("waiting for the run"), display_id=True)

    def __call__(self, event: RunEvent, control: RunControl) -> None:
        """Takes in an event, and draws if it is time."""
        match event:
            case Measured(snapshot):
                self._last = snapshot
                if snapshot.train_return_mean is not None:
                    self._training.append((snapshot.env_steps_total, snapshot.train_return_mean))
            case Evaluated() if not event.confirms:
                self._greedy.append((self._last.env_steps_total, event.return_mean))
            case Ended():
                self._draw(f"Ended: {event.reason}. ")
                return
            case _:
                return
        if time.monotonic() - self._drawn >= _GAP_SECONDS:
            self._draw("")

    def _draw(self, begin: str) -> None:
        self._drawn = time.monotonic()
        last = self._last
        text = (
            f"{begin}{duration(last.run_seconds)}, {short(last.env_steps_total)} env steps, "
            f"{short(last.updates_total)} updates, best greedy return {short(last.best_return_mean)}"
        )
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        environment.filters["points"] = lambda points: " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        page = environment.from_string(_TEMPLATE)
        shown = {"colors": LIGHT, "width": WIDTH, "anchors": _ANCHORS}
        self._cell.update(self._html(page.render(text=text, drawing=self._drawing(), **shown)))

    def _drawing(self) -> Drawing | None:
        """The chart of both returns; None before there are two points."""
        lines = [("training return", self._training), ("greedy return", self._greedy)]
        series = [
            Series(name, color, tuple(x for x, _ in points), tuple(y for _, y in points))
            for color, (name, points) in enumerate(lines)
            if len(points) > 1
        ]
        if not series:
            return None
        return draw(Chart("Learning", "Return", "environment steps", "mean return", tuple(series)))
