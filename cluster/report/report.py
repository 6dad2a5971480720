"""`qfleet report`: one self-contained HTML page about one run or several, and its charts as PNG files.

Owns the contents of the page, which refers to no other file or site. Must not import torch or ray.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from cluster.record.seed_group import with_groups_expanded
from cluster.report.answer import answer, best_returns
from cluster.report.charts import AxisName, charts, interval
from cluster.report.drawing import DARK, LIGHT, WIDTH, Points, draw
from cluster.report.png import require_matplotlib, write_pngs
from cluster.report.runs import Group, Run, changed_settings, differing, groups_of, periods, read_run
from cluster.settings.config import ConfigError
from cluster.wording import byte_size, duration

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_MAX_EVENTS = 300
_MAX_VIDEO_BYTES = 32 * 10**6
_MEDIA = {".mp4": "video/mp4", ".gif": "image/gif"}


def write_report(
    run_dirs: Sequence[Path],
    out: Path | None = None,
    png: Path | None = None,
    *,
    baseline: Path | None = None,
    axis: AxisName | None = None,
) -> tuple[Path, ...]:
    """Writes the page, and its charts as PNG files into the folder `png`; returns the files written.

    Args:
        run_dirs: folders of runs, or of groups of seeds.
        out: default report.html in the first run directory.
        baseline: a run or group of seeds with which the others are compared; shown with them.
        axis: of all charts over steps, updates or time; by default each has the one that suits it.

    Raises:
        ConfigError: a folder holds no run, cannot be written, or matplotlib is missing for `png`.
    """
    if png is not None:
        require_matplotlib()
    compared = [path.absolute() for path in with_groups_expanded([] if baseline is None else [baseline])]
    paths = [*compared, *(path.absolute() for path in with_groups_expanded(run_dirs))]
    runs = [read_run(path) for path in dict.fromkeys(paths)]
    out = out or run_dirs[0] / "report.html"
    page = render(runs, axis, baseline=baseline is not None)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out is {out}: cannot be written: {error}") from None
    return (out, *(write_pngs(map(draw, charts(groups_of(runs), axis)), png) if png is not None else ()))


def render(runs: Sequence[Run], axis: AxisName | None = None, *, baseline: bool = False) -> str:
    """The HTML page. Names and values of runs are escaped. baseline: the first group is one."""
    groups = groups_of(runs)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(value=_value, number=_number, duration=duration, points=_points)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    subtitle = (
        " and ".join(dict.fromkeys(str(run.settings.get("env.id", "?")) for run in runs)),
        f"{len(groups)} configurations" if len(groups) > 1 else "",
        f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    by_section = groupby(map(draw, charts(groups, axis)), key=lambda drawing: drawing.chart.section)
    return template.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        subtitle=", ".join(filter(None, subtitle)),
        answer=answer(groups),
        baseline=groups[0].label if baseline else "",
        runs=runs,
        colors={"light": LIGHT, "dark": DARK},
        width=WIDTH,
        over_seeds=[_over_seeds(group) for group in groups if len(best_returns(group)) > 1],
        sections=[(section, list(drawings)) for section, drawings in by_section],
        videos=[_video(run, run.video) for run in runs if run.video],
        diagnosis=[(run.name, held) for run in runs if (held := periods(run))],
        max_events=_MAX_EVENTS,
        settings=_settings(runs),
        provenance=[
            (name, [run.provenance.get(name) for run in runs])
            for name in dict.fromkeys(name for run in runs for name in run.provenance)
        ],
    )


def _settings(runs: Sequence[Run]) -> list[tuple[str, Sequence[Any]]]:
    """For one run: value and default of each changed setting. For several: the values that differ."""
    if len(runs) == 1:
        return [(name, values) for name, *values in changed_settings(runs[0])]
    return [(name, [run.settings.get(name) for run in runs]) for name in differing(runs)]


def _over_seeds(group: Group) -> Mapping[str, Any]:
    found = interval(best_returns(group))
    return {"label": group.label} | ({} if found is None else asdict(found))


def _video(run: Run, file: Path) -> Mapping[str, Any]:
    size, media = file.stat().st_size, _MEDIA[file.suffix]
    fits = size <= _MAX_VIDEO_BYTES
    return {
        "name": run.name,
        "moving": media.startswith("video/"),
        "data": f"data:{media};base64,{base64.b64encode(file.read_bytes()).decode()}" if fits else None,
        "note": f"{file.name} has {byte_size(size)}, too large for the page",
    }


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "[]"
    return "-" if value is None else str(value)


def _number(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "-"


def _points(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
