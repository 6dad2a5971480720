"""`qfleet report`: one self-contained HTML page about one run or several, and its charts as PNG files.

Owns what stands where on the page; it refers to nothing outside itself. Must not import torch or ray.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cluster.record.events import LEVELS
from cluster.report.data import (
    Bars,
    Chart,
    Group,
    Run,
    bootstrap,
    charts,
    differing,
    groups_of,
    iqm,
    not_default,
    periods,
    phases,
    read_run,
)
from cluster.report.png import require_matplotlib, write_pngs
from cluster.report.svg import COLOURS, bars_legend, bars_svg, chart_svg, legend
from cluster.settings.config import ConfigError
from cluster.wording import byte_size, duration

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_SECTIONS = ("Learning", "Speed", "Data", "Fleet")
_MOST_EVENTS = 300
_MOST_VIDEO_BYTES = 32 * 10**6
_MEDIA = {".mp4": "video/mp4", ".gif": "image/gif"}


def write_report(
    run_dirs: Sequence[Path], out: Path | None = None, png: Path | None = None
) -> tuple[Path, ...]:
    """Writes the page, and into the folder `png` its charts; returns every file written.

    Args:
        out: default report.html in the first run directory.

    Raises:
        ConfigError: a folder holds no run, cannot be written, or matplotlib is missing for `png`.
    """
    if png is not None:
        require_matplotlib()
    runs = tuple(read_run(path) for path in dict.fromkeys(run_dirs))
    out = out or run_dirs[0] / "report.html"
    page = render(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out is {out}: cannot be written: {error}") from None
    return (out, *(write_pngs(panels(groups_of(runs)), png) if png is not None else ()))


def panels(groups: Sequence[Group]) -> tuple[Chart | Bars, ...]:
    """Every chart that there is data for, by section."""
    found: tuple[Chart | Bars, ...] = (*charts(groups), *phases(groups))
    return tuple(sorted(found, key=lambda panel: _SECTIONS.index(panel.section)))


def render(runs: Sequence[Run]) -> str:
    """The page. Whatever runs are called or hold is text in it, never markup."""
    groups = groups_of(runs)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    different = differing(runs)
    return template.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        subtitle=", ".join(
            filter(
                None,
                (
                    " and ".join(dict.fromkeys(str(run.settings.get("env.id", "?")) for run in runs)),
                    f"{len(groups)} configurations" if len(groups) > 1 else "",
                    f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
                ),
            )
        ),
        colours=COLOURS,
        summary=[_summary(run) for run in runs],
        over_seeds=[row for group in groups if (row := _over_seeds(group))],
        sections=list(_sections(groups)),
        videos=[_video(run) for run in runs if run.video],
        diagnosis=[(run.name, rows) for run in runs if (rows := _diagnosis(run))],
        events=[(run.name, *_events(run)) for run in runs if run.events],
        settings_title="settings that differ" if len(runs) > 1 else "settings other than the defaults",
        settings_columns=[run.name for run in runs] if len(runs) > 1 else ["value", "default"],
        settings=[(name, [_value(run.settings.get(name)) for run in runs]) for name in different]
        if len(runs) > 1
        else [(name, [_value(value), _value(default)]) for name, value, default in not_default(runs[0])],
        provenance_columns=[run.name for run in runs],
        provenance=list(_provenance(runs)),
    )


def _summary(run: Run) -> Mapping[str, str]:
    last = run.last
    return {
        "name": run.name,
        "seed": _value(run.seed),
        "best": _number(last.get("best_return_mean"), 2),
        "train": _number(last.get("train_return_mean"), 2),
        "env_steps": _number(last.get("env_steps_total"), 0),
        "updates": _number(last.get("updates_total"), 0),
        "time": duration(last["run_seconds"]) if "run_seconds" in last else "-",
        "restarts": _number(last.get("restarts_total"), 0),
        "end": run.end,
    }


def _over_seeds(group: Group) -> Mapping[str, Any] | None:
    best = [run.last["best_return_mean"] for run in group.runs if "best_return_mean" in run.last]
    if len(best) < 2:
        return None
    values = np.array(best, np.float64).reshape(-1, 1)
    low, high = bootstrap(values, iqm)
    return {
        "label": group.label,
        "seeds": len(best),
        "iqm": _number(float(iqm(values)[0]), 2),
        "low": _number(float(low[0]), 2),
        "high": _number(float(high[0]), 2),
    }


def _sections(groups: Sequence[Group]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    found = panels(groups)
    for section in _SECTIONS:
        shown = [_panel(panel) for panel in found if panel.section == section]
        if shown:
            yield section, shown


def _panel(panel: Chart | Bars) -> Mapping[str, Any]:
    if isinstance(panel, Chart):
        return {
            "title": panel.title,
            "svg": chart_svg(panel),
            "legend": legend(panel),
            "note": panel.note,
        }
    return {
        "title": panel.title,
        "svg": bars_svg(panel),
        "legend": bars_legend(panel),
        "note": panel.note,
    }


def _video(run: Run) -> Mapping[str, Any]:
    assert run.video is not None
    size = run.video.stat().st_size
    fits = size <= _MOST_VIDEO_BYTES
    data = base64.b64encode(run.video.read_bytes()).decode() if fits else None
    media = _MEDIA[run.video.suffix]
    return {
        "name": run.name,
        "moving": media.startswith("video/"),
        "data": data and f"data:{media};base64,{data}",
        "note": f"{run.video.name} has {byte_size(size)}, too much for a page",
    }


def _diagnosis(run: Run) -> list[Mapping[str, str]]:
    return [
        {
            "kind": period.kind,
            "began": duration(period.began),
            "ended": duration(period.ended),
            "text": period.text,
        }
        for period in periods(run)
    ]


def _events(run: Run) -> tuple[list[Mapping[str, str]], int]:
    rows: list[Mapping[str, str]] = [
        {"at": duration(event.run_seconds), "level": LEVELS[event.kind], "text": event.text}
        for event in run.events[-_MOST_EVENTS:]
    ]
    return rows, len(run.events) - len(rows)


def _provenance(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    for name in dict.fromkeys(name for run in runs for name in run.provenance):
        yield name, [_value(run.provenance.get(name)) for run in runs]


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(map(str, value)) if value else "[]"
    return str(value)


def _number(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "-"
