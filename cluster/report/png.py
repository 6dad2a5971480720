"""Writes drawings of charts as PNG files by matplotlib (extra "report").

Owns the files and their size; must not import torch or ray.
"""

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.report.drawing import LIGHT, WIDTH, Drawing
from cluster.settings.config import ConfigError

_INCHES = (6.4, 4.0)
_DPI = 150
_GRAY = "#5b6474"
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "grid": {"color": "#d9dde4", "linewidth": 0.8},
    "solid": {},
    "faint": {"linewidth": 0.8, "alpha": 0.35},
    "dashed": {"linestyle": "--"},
    "band": {"alpha": 0.18, "linewidth": 0},
    "bar": {"linewidth": 0},
}


def require_matplotlib() -> None:
    """Raises ConfigError if the package is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--png needs matplotlib: pip install 'qfleet[report]'; the HTML page does not")


def write_pngs(drawings: Iterable[Drawing], folder: Path) -> tuple[Path, ...]:
    """Writes a file of 960 x 600 pixels for each drawing, named by its order and title.

    Raises ConfigError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(_write(drawing, folder, number) for number, drawing in enumerate(drawings, start=1))
    except OSError as error:
        raise ConfigError(f"--png {folder}: cannot be written: {error}") from None


def _write(drawing: Drawing, folder: Path, number: int) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    figure.suptitle(drawing.chart.title)
    box = figure.add_subplot(xlim=(0, WIDTH), ylim=(drawing.height, 0), aspect="equal")
    box.set_axis_off()
    for path in drawing.paths:
        xs, ys = zip(*path.points, strict=True)
        (box.fill if path.filled else box.plot)(xs, ys, **{"color": LIGHT[path.color], **_STYLES[path.style]})
    for label in drawing.labels:
        box.text(
            label.x,
            label.y,
            label.text,
            ha=label.align,
            rotation=90 if label.turned else 0,
            rotation_mode="anchor",
            color=_GRAY,
            size="small",
        )
    handles = [
        Line2D([], [], color=LIGHT[key.color], label=key.label, **_STYLES[key.style])
        for key in drawing.legend
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    name = re.sub(r"[^a-z0-9]+", "-", drawing.chart.title.lower()).strip("-")
    file = folder / f"{number:02}-{name}.png"
    figure.savefig(file)
    return file
