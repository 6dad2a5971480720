"""Charts as PNG files, drawn by matplotlib (extra "report").

Owns drawing; must not import torch or ray.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.report.axes import axes
from cluster.report.data import Bars, Chart
from cluster.settings.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (6.4, 4.0)
_DPI = 150


def require_matplotlib() -> None:
    """Raises ConfigError where the package is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "--png needs matplotlib: install the extra (pip install -e '.[report]'); the HTML page does not"
        )


def write_pngs(charts: Sequence[Chart | Bars], folder: Path) -> tuple[Path, ...]:
    """One file for each chart, named by its order and title. Raises ConfigError if the folder is no use."""
    from matplotlib.figure import Figure

    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for index, chart in enumerate(charts, start=1):
            figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
            axis = figure.add_subplot()
            axis.set_title(chart.title)
            if isinstance(chart, Chart):
                _lines(axis, chart)
            else:
                _bars(axis, chart)
            name = re.sub(r"[^a-z0-9]+", "-", chart.title.lower()).strip("-")
            written.append(folder / f"{index:02}-{name}.png")
            figure.savefig(written[-1])
    except OSError as error:
        raise ConfigError(f"--png {folder}: cannot be written: {error}") from None
    return tuple(written)


def _lines(axis: Axes, chart: Chart) -> None:
    _, up = axes(chart)
    labelled: set[str] = set()
    for line in sorted(chart.series, key=lambda line: not line.faint):
        label = None if line.faint or line.label in labelled else line.label
        labelled.update([label] if label else [])
        axis.plot(
            line.xs,
            line.ys,
            label=label,
            color=f"C{line.colour}",
            linestyle="--" if line.dashed else "-",
            alpha=0.3 if line.faint else 1.0,
        )
        if line.low:
            axis.fill_between(line.xs, line.low, line.high, color=f"C{line.colour}", alpha=0.2, linewidth=0)
    if up.log:
        axis.set_yscale("log")
    axis.set_xlabel(chart.x_label)
    axis.set_ylabel(chart.y_label)
    axis.grid(alpha=0.3)
    if len(labelled) > 1:
        axis.legend(fontsize="small")


def _bars(axis: Axes, bars: Bars) -> None:
    names = [name for name, _ in bars.rows]
    left = [0.0] * len(names)
    for index, phase in enumerate(bars.phases):
        shares = [100.0 * seconds[index] / sum(seconds) for _, seconds in bars.rows]
        axis.barh(range(len(names)), shares, left=left, label=phase, color=f"C{index}", height=0.5)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("share of the processes' time (%)")
    axis.legend(fontsize="small")
