"""What a report shows of runs: their files read back, grouped by configuration, and made into charts.

Owns reading, aggregation over seeds and the choice of charts; draws nothing. Must not import torch or ray.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from cluster.record.events import Event, read_events
from cluster.record.run_dir import RESUMES
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.renames import METRICS, rename_settings, renamed

_POINTS = 300
_GRID_POINTS = 200
_RESAMPLES = 2_000
_RESAMPLES_AT_ONCE = 100
_VIDEOS = ("video.mp4", "video.gif")

Line = Mapping[str, Any]
Array = np.ndarray


@dataclass(frozen=True)
class Run:
    """One run as its directory tells it. settings: "learner.double" -> value, of the resolved config."""

    path: Path
    settings: Mapping[str, Any]
    metrics: tuple[Line, ...]
    evaluations: tuple[Line, ...]
    events: tuple[Event, ...]
    provenance: Mapping[str, Any]
    video: Path | None

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.path.absolute().name

    @property
    def seed(self) -> Any:
        """run.seed."""
        return self.settings.get("run.seed")

    @property
    def last(self) -> Line:
        """Its newest figures; empty before the first."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def end(self) -> str:
        """How it ended, in its own words."""
        for event in reversed(self.events):
            if event.kind == "ended":
                return event.text
            if event.kind == "failed":
                return event.line
        return "has not ended"


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, whatever their seeds. index: its colour; label: what sets it apart."""

    index: int
    label: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Series:
    """One line. xs, ys, low and high have equal lengths; faint: a part of what another one sums up."""

    label: str
    colour: int
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    faint: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over one axis. Labels carry the units."""

    section: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Time by phase: a bar of a role's seconds for each run, its parts in the order of `phases`."""

    section: str
    title: str
    phases: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    note: str = ""


@dataclass(frozen=True)
class Period:
    """A verdict or warning, and from when to when it held, in run seconds. text: as it was put last."""

    kind: str
    began: float
    ended: float
    text: str


def read_run(path: Path) -> Run:
    """Reads a run directory, whatever version wrote it. Raises ConfigError if it holds no run."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no run directory (config.yaml is missing)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path / 'config.yaml'}: cannot be read: {error}") from None
    metrics: tuple[Line, ...] = tuple(renamed(METRICS, line) for line in _lines(path / "metrics.jsonl"))
    evaluations = tuple(_lines(path / "evaluations.jsonl"))
    if (path / RESUMES).exists():
        # Not otherwise: a learner that was lost and replaced goes back by some versions, too.
        metrics = _played_once(metrics, "env_steps_total")
        evaluations = _played_once(evaluations, "version")
    settings = config if isinstance(config, dict) else {}
    rename_settings(settings)
    return Run(
        path,
        dict(leaves(settings)),
        metrics,
        evaluations,
        tuple(read_events(path)),
        _provenance(path / "provenance.json"),
        next((path / name for name in _VIDEOS if (path / name).is_file()), None),
    )


def _played_once(lines: Iterable[Line], counter: str) -> tuple[Line, ...]:
    """Without what a run wrote behind a checkpoint from which it was resumed: it has played that again.

    counter: what grows from line to line, and goes back where the run did. A run that went back less than one
    line keeps that line.
    """
    kept: list[tuple[float, Line]] = []
    for line in lines:
        before = kept[-1][0] if kept else -math.inf
        at: Any = line.get(counter)
        at = at if _is_number(at) else before
        if at < before:
            while kept and kept[-1][0] >= at:
                kept.pop()
        kept.append((at, line))
    return tuple(line for _, line in kept)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _lines(path: Path) -> Iterator[Line]:
    """The lines that are whole: a run that goes on may be writing the last one."""
    for text in _text(path).splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _provenance(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(_text(path))
    except ValueError:
        return {}
    return dict(leaves(facts)) if isinstance(facts, dict) else {}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full name and value of each setting in nested mappings."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def groups_of(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Runs together whose settings are equal up to run.seed, in the order in which they were given."""
    different = [name for name in differing(runs) if name != "run.seed"]
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(repr([run.settings.get(name) for name in different]), []).append(run)
    found = []
    for index, group in enumerate(members.values()):
        parts = [f"{name} = {group[0].settings.get(name)}" for name in different]
        label = ", ".join(parts[:3]) + (", …" if len(parts) > 3 else "")
        found.append(Group(index, label or str(group[0].settings.get("env.id", group[0].name)), tuple(group)))
    return tuple(found)


def differing(runs: Sequence[Run]) -> tuple[str, ...]:
    """Names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return tuple(
        name for name in names if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)
    )


def not_default(run: Run) -> tuple[tuple[str, Any, Any], ...]:
    """Name, value and default of each setting that is not the default's."""
    defaults = dict(leaves(msgspec.to_builtins(dataclasses.asdict(RunConfig()))))
    return tuple(
        (name, value, defaults.get(name))
        for name, value in run.settings.items()
        if name not in defaults or defaults[name] != value
    )


def iqm(values: Array) -> Array:
    """Interquartile mean over axis -2: the mean of the middle half (arXiv:2108.13264).

    values: [..., S, X], one row a seed. A quarter of the seeds, rounded down, is left out at either end, so
    below four seeds it is the plain mean.
    """
    seeds = values.shape[-2]
    cut = seeds // 4
    return np.asarray(np.sort(values, axis=-2)[..., cut : seeds - cut, :].mean(axis=-2))


def mean(values: Array) -> Array:
    """The mean over axis -2."""
    return np.asarray(values.mean(axis=-2))


def bootstrap(values: Array, statistic: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Percentile interval (95 %) of a statistic over rows drawn anew with replacement.

    values: [S, X]; returns the lower and upper bounds [X] of 2,000 resamples, always the same ones.
    """
    rng = np.random.default_rng(0)
    drawn = [
        statistic(values[rng.integers(len(values), size=(_RESAMPLES_AT_ONCE, len(values)))])
        for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(drawn), (2.5, 97.5), axis=0)
    return low, high


def column(lines: Iterable[Line], x: str, y: str) -> tuple[Array, Array]:
    """Both figures where both are known and finite."""
    pairs = [(line[x], line[y]) for line in lines if _is_number(line.get(x)) and _is_number(line.get(y))]
    array = np.array(pairs, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(xs: Array, ys: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """At most 300 points, each the mean of those it stands for."""
    if len(xs) <= _POINTS:
        return _floats(xs), _floats(ys)
    parts = np.array_split(np.arange(len(xs)), _POINTS)
    return tuple(float(xs[part].mean()) for part in parts), tuple(float(ys[part].mean()) for part in parts)


def _floats(values: Array) -> tuple[float, ...]:
    return tuple(map(float, values))


def evaluation_steps(run: Run) -> Array:
    """The env steps at which each of a run's evaluated versions was the newest, [E]."""
    updates, steps = column(run.metrics, "weights_version", "env_steps_total")
    if not len(updates):
        updates, steps = column(run.metrics, "updates_total", "env_steps_total")
    versions = np.array([line.get("version", 0) for line in run.evaluations], np.float64)
    if not len(updates):
        return versions
    if updates[0] > 0:
        # Versions before the first figures came after learning began.
        starts = min(float(run.settings.get("pacing.learning_starts", 0)), steps[0])
        updates, steps = np.append(0.0, updates), np.append(starts, steps)
    kept = np.concatenate([[True], np.diff(updates) > 0])
    return np.asarray(np.interp(versions, updates[kept], steps[kept]))


def greedy_curve(run: Run) -> tuple[Array, Array, Array]:
    """Env steps, mean return and the episodes' returns [episodes, E] of a run's first evaluations.

    Confirmations are left out: only versions that did well get one.
    """
    steps = evaluation_steps(run)
    first = [
        (step, line["returns"])
        for step, line in zip(steps, run.evaluations, strict=True)
        if not line.get("confirms") and line.get("returns")
    ]
    if not first:
        return np.empty(0), np.empty(0), np.empty((0, 0))
    fewest = min(len(returns) for _, returns in first)
    episodes = np.array([returns[:fewest] for _, returns in first], np.float64).T
    means = np.array([np.mean(returns) for _, returns in first])
    return np.array([step for step, _ in first]), means, episodes


def curve(group: Group, curves: Sequence[tuple[Array, Array]]) -> Iterator[Series]:
    """Each seed's own line, faint; where all have been, their IQM with its interval."""
    known = [(xs, ys) for xs, ys in curves if len(xs)]
    if len(known) == 1:
        yield Series(group.label, group.index, *thinned(*known[0]))
        return
    for xs, ys in known:
        yield Series(group.label, group.index, *thinned(xs, ys), faint=True)
    if not known:
        return
    low_x, high_x = max(xs[0] for xs, _ in known), min(xs[-1] for xs, _ in known)
    if high_x <= low_x:
        return
    grid = np.linspace(low_x, high_x, _GRID_POINTS)
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in known])
    low, high = bootstrap(values, iqm)
    label = f"{group.label} ({len(known)} seeds)"
    yield Series(label, group.index, _floats(grid), _floats(iqm(values)), _floats(low), _floats(high))


def _greedy(group: Group) -> Iterator[Series]:
    curves = [greedy_curve(run) for run in group.runs]
    if len(group.runs) > 1:
        yield from curve(group, [(xs, means) for xs, means, _ in curves])
        return
    ((xs, means, episodes),) = curves
    if len(xs):
        low, high = bootstrap(episodes, mean)
        line = (_floats(xs), _floats(means), _floats(low), _floats(high))
        yield Series(group.label, group.index, *line)


_STEPS = ("env_steps_total", "environment steps")


@dataclass(frozen=True)
class _Wanted:
    """A chart of figures over time or steps.

    more: figures shown beside the first where there is one run; beside: one that is always shown, dashed.
    """

    section: str
    title: str
    y_label: str
    figure: str
    more: tuple[str, ...] = ()
    over_steps: bool = False
    beside: str = ""
    note: str = ""


_WANTED = (
    _Wanted("Learning", "Exploration rate", "epsilon", "epsilon", over_steps=True),
    _Wanted("Learning", "Loss", "loss (mean of a chunk)", "loss", over_steps=True),
    _Wanted("Learning", "Q-values of actions taken", "Q (return)", "q_mean", ("q_min", "q_max"), True),
    _Wanted("Learning", "TD error", "mean |TD error| (return)", "td_error_mean", over_steps=True),
    _Wanted(
        "Learning",
        "Gradient norm",
        "L2 norm",
        "grad_norm_mean",
        ("grad_norm_clipped_mean",),
        True,
    ),
    _Wanted(
        "Learning",
        "Foretold and played",
        "discounted return",
        "evaluation_start_value_mean",
        over_steps=True,
        beside="evaluation_discounted_return_mean",
        note="Solid: max Q where the episodes of an evaluation began; dashed: what they returned. "
        "Solid well above dashed is overestimation.",
    ),
    _Wanted(
        "Learning",
        "Variety of actions taken",
        "entropy, share of its maximum",
        "action_entropy_ratio",
        ("evaluation_action_entropy_ratio",),
        True,
    ),
    _Wanted("Speed", "Acting", "environment steps / s", "env_steps_per_second"),
    _Wanted("Speed", "Learning", "updates / s", "updates_per_second"),
    _Wanted("Speed", "Learner updating", "share of time", "learner_update_share"),
    _Wanted("Speed", "Learner waiting for data", "share of time", "learner_wait_share"),
    _Wanted("Speed", "Actors working", "share of time, mean", "actor_busy_share"),
    _Wanted(
        "Data",
        "Samples per insert",
        "sampled / inserted",
        "samples_per_insert",
        beside="samples_per_insert_target",
        note="Dashed: the target.",
    ),
    _Wanted("Data", "Policy lag of acting", "updates", "policy_lag_updates"),
    _Wanted("Data", "Replay", "transitions held", "replay_transitions"),
    _Wanted("Data", "Reuse", "draws a transition, mean", "reuse_mean"),
    _Wanted("Fleet", "Replaced roles", "replacements", "restarts_total"),
)


def charts(groups: Sequence[Group]) -> tuple[Chart, ...]:
    """Every chart that there is data for."""
    seeds = any(len(group.runs) > 1 for group in groups)
    over_seeds = "Line: IQM over seeds; band: 95 % bootstrap interval; faint: each seed." if seeds else ""
    one = "Where a configuration has one seed: band: 95 % bootstrap interval of the mean over episodes."
    one = one if any(len(group.runs) == 1 for group in groups) else ""
    found = [
        Chart(
            "Learning",
            "Greedy return",
            _STEPS[1],
            "return, mean of an evaluation",
            tuple(line for group in groups for line in _greedy(group)),
            " ".join(filter(None, (over_seeds, one))),
        ),
        Chart(
            "Learning",
            "Training return",
            _STEPS[1],
            "return, mean of 100 episodes",
            tuple(
                line
                for group in groups
                for line in curve(
                    group, [column(run.metrics, _STEPS[0], "train_return_mean") for run in group.runs]
                )
            ),
            over_seeds,
        ),
        *(_over(wanted, groups) for wanted in _WANTED),
        _memory(groups),
    ]
    return tuple(chart for chart in found if any(len(line.xs) > 1 for line in chart.series))


def _over(wanted: _Wanted, groups: Sequence[Group]) -> Chart:
    runs = [(group, run) for group in groups for run in group.runs]
    unit, seconds = _time_unit(run for _, run in runs)
    series = []
    for group, run in runs:
        alone = len(runs) == 1
        names = (wanted.figure, *(wanted.more if alone else ()), *([wanted.beside] if wanted.beside else ()))
        for index, name in enumerate(names):
            xs, ys = column(run.metrics, _STEPS[0] if wanted.over_steps else "run_seconds", name)
            xs = xs if wanted.over_steps else xs / seconds
            label = name.replace("_", " ") if alone and len(names) > 1 else group.label
            colour = index if alone else group.index
            series.append(Series(label, colour, *thinned(xs, ys), dashed=name == wanted.beside))
    # A run without a single replacement needs no chart that says so.
    if wanted.figure == "restarts_total" and not any(any(line.ys) for line in series):
        series = []
    x_label = _STEPS[1] if wanted.over_steps else f"time since the start ({unit})"
    return Chart(wanted.section, wanted.title, x_label, wanted.y_label, tuple(series), wanted.note)


def _memory(groups: Sequence[Group]) -> Chart:
    """Resident memory by role of a single run, or its sum of each of several."""
    runs = [(group, run) for group in groups for run in group.runs]
    unit, seconds = _time_unit(run for _, run in runs)
    series = []
    for group, run in runs:
        points = [
            (line["run_seconds"] / seconds, line["process_resident_memory_bytes"])
            for line in run.metrics
            if isinstance(line.get("process_resident_memory_bytes"), Mapping)
            and _is_number(line.get("run_seconds"))
        ]
        if len(runs) > 1:
            points = [(x, {group.label: sum(roles.values())}) for x, roles in points]
        for index, role in enumerate(dict.fromkeys(role for _, roles in points for role in roles)):
            known = [(x, roles[role] / 1e6) for x, roles in points if _is_number(roles.get(role))]
            xs, ys = np.array(known, np.float64).reshape(-1, 2).T
            series.append(Series(role, index if len(runs) == 1 else group.index, *thinned(xs, ys)))
    return Chart("Fleet", "Memory", f"time since the start ({unit})", "resident memory (MB)", tuple(series))


def _time_unit(runs: Iterable[Run]) -> tuple[str, float]:
    longest = max((run.last.get("run_seconds", 0.0) for run in runs), default=0.0)
    if longest >= 2 * 3_600:
        return "h", 3_600.0
    return ("min", 60.0) if longest >= 300 else ("s", 1.0)


def phases(groups: Sequence[Group]) -> tuple[Bars, ...]:
    """For each role, how each run's processes of it spent their time."""
    runs = [run for group in groups for run in group.runs]
    spent = {
        run.path: by_role
        for run in runs
        if isinstance(by_role := run.last.get("role_seconds_total"), Mapping)
    }
    found = []
    for role in dict.fromkeys(role for by_role in spent.values() for role in by_role):
        names = tuple(dict.fromkeys(name for by_role in spent.values() for name in by_role.get(role, {})))
        rows = tuple(
            (run.name, tuple(float(spent[run.path].get(role, {}).get(name, 0.0)) for name in names))
            for run in runs
            if run.path in spent and sum(spent[run.path].get(role, {}).values()) > 0
        )
        if rows:
            found.append(Bars("Speed", f"Time of the {role}", names, rows))
    return tuple(found)


def periods(run: Run) -> tuple[Period, ...]:
    """When which verdict and which warnings held, by the order in which they began.

    Two of the same kind, which is what stands before the first colon, are one as long as it does not pause.
    """
    open_periods: dict[tuple[str, str], Period] = {}
    done: list[Period] = []
    for line in run.metrics:
        now = line.get("run_seconds", 0.0)
        verdict, warnings = line.get("verdict"), line.get("warnings")
        said = [("verdict", verdict)] if isinstance(verdict, str) and verdict else []
        said += [("warning", text) for text in warnings] if isinstance(warnings, list) else []
        keys = {(kind, str(text).partition(":")[0]): str(text) for kind, text in said}
        done += [open_periods.pop(key) for key in list(open_periods) if key not in keys]
        for key, text in keys.items():
            began = open_periods[key].began if key in open_periods else now
            open_periods[key] = Period(key[0], began, now, text)
    return tuple(sorted([*done, *open_periods.values()], key=lambda period: period.began))
