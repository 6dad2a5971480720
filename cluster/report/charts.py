"""The charts of a report as data: their metrics, aggregated over seeds.

Owns the choice of charts and the aggregation over seeds; draws nothing. Must not import torch or ray.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cluster.report.runs import Array, Group, Line, Run, columns, greedy_curve

SECTIONS = ("Learning", "Speed", "Data", "Fleet")
"""Parts of the page, in order."""

_POINTS = 300
_GRID_POINTS = 200
_RESAMPLES = 2_000
_RESAMPLES_AT_ONCE = 100

LineStyle = Literal["solid", "faint", "dashed"]
AxisName = Literal["steps", "updates", "time"]
Floats = tuple[float, ...]


@dataclass(frozen=True)
class Series:
    """One line. xs, ys, low and high have equal lengths, or low and high are empty.

    style: faint for one seed beside the mean of all; dashed for what another line is compared with.
    """

    label: str
    color: int
    xs: Floats
    ys: Floats
    low: Floats = ()
    high: Floats = ()
    style: LineStyle = "solid"


@dataclass(frozen=True)
class Chart:
    """Lines over one axis. Labels carry the units. share: the vertical axis goes from 0 to 1."""

    section: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    note: str = ""
    share: bool = False


@dataclass(frozen=True)
class Bars:
    """Time by phase. runs: name of each run, and its seconds in each of `phases`."""

    section: str
    title: str
    phases: tuple[str, ...]
    runs: tuple[tuple[str, Floats], ...]


@dataclass(frozen=True)
class Interval:
    """Interquartile mean of the best returns over seeds, with its bootstrap interval (95 %).

    seeds: how many had a best version. low, high: equal iqm for a single one.
    """

    seeds: int
    iqm: float
    low: float
    high: float


def iqm(values: Array) -> Array:
    """Interquartile mean over axis -2: the mean of the middle half (arXiv:2108.13264).

    values: [..., S, X], a row for each seed. A quarter of the seeds, rounded down, is left out at either end,
    so below four seeds it is the plain mean.
    """
    seeds = values.shape[-2]
    left_out = seeds // 4
    return np.asarray(np.sort(values, axis=-2)[..., left_out : seeds - left_out, :].mean(axis=-2))


def bootstrap(values: Array, statistic: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Bootstrap interval (95 %, percentile method) of a statistic over the rows of `values`.

    values: [S, X]; returns the lower and upper bounds [X] over 2,000 resamples, drawn with a fixed seed.
    """
    rng = np.random.default_rng(0)
    drawn = [
        statistic(values[rng.integers(len(values), size=(_RESAMPLES_AT_ONCE, len(values)))])
        for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(drawn), (2.5, 97.5), axis=0)
    return low, high


def interval(best_returns: Sequence[float]) -> Interval | None:
    """The interval over the best returns of some seeds; None for none."""
    if not best_returns:
        return None
    values = np.array(best_returns, np.float64).reshape(-1, 1)
    ((low,), (high,)), (middle,) = bootstrap(values, iqm), iqm(values)
    return Interval(len(best_returns), float(middle), float(low), float(high))


def thinned(xs: Array, ys: Array) -> tuple[Floats, Floats]:
    """At most 300 points, each the mean of neighboring points."""
    parts = np.array_split(np.arange(len(xs)), min(_POINTS, len(xs))) if len(xs) else []
    return _floats(xs[part].mean() for part in parts), _floats(ys[part].mean() for part in parts)


def _floats(values: Iterable[float]) -> Floats:
    return tuple(map(float, values))


def curve_over_seeds(group: Group, curves: Sequence[tuple[Array, Array]]) -> Iterator[Series]:
    """A line for each seed, and their IQM with its interval over the range that all seeds cover.

    Where the shortest seed has ended, the IQM of those that go on continues as a dashed line.
    """
    known = [(xs, ys) for xs, ys in curves if len(xs)]
    for xs, ys in known:
        yield Series(group.label, group.index, *thinned(xs, ys), style="faint" if len(known) > 1 else "solid")
    low_x = max((xs[0] for xs, _ in known), default=0.0)
    high_x = min((xs[-1] for xs, _ in known), default=0.0)
    if len(known) < 2 or high_x <= low_x:
        return
    grid = np.linspace(low_x, high_x, _GRID_POINTS)
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in known])
    label = f"{group.label} ({len(known)} seeds)"
    low, high = bootstrap(values, iqm)
    yield Series(label, group.index, _floats(grid), _floats(iqm(values)), _floats(low), _floats(high))
    beyond = np.linspace(high_x, max(xs[-1] for xs, _ in known), _GRID_POINTS // 4)[1:]
    if beyond[-1] > high_x:
        going_on = [
            float(iqm(np.array([[np.interp(x, xs, ys)] for xs, ys in known if xs[-1] >= x])).item())
            for x in beyond
        ]
        yield Series(label, group.index, _floats(beyond), tuple(going_on), style="dashed")


@dataclass(frozen=True)
class _MetricChart:
    """A chart of one metric, over env steps in "Learning", else over time, unless an axis is asked for.

    A group of several seeds is drawn as its seeds and their IQM. more: metrics to add if there is only one
    run. beside: a metric that is always added, dashed.
    """

    section: str
    title: str
    y_label: str
    metric: str
    more: tuple[str, ...] = ()
    beside: str = ""
    note: str = ""


_METRIC_CHARTS = (
    _MetricChart("Learning", "Exploration rate", "epsilon", "epsilon"),
    _MetricChart("Learning", "Loss", "loss (mean of a chunk)", "loss"),
    _MetricChart("Learning", "Q-values of actions taken", "Q (return)", "q_mean", ("q_min", "q_max")),
    _MetricChart("Learning", "TD error", "mean |TD error| (return)", "td_error_mean"),
    _MetricChart("Learning", "Gradient norm", "L2 norm", "grad_norm_mean", ("grad_norm_clipped_mean",)),
    _MetricChart(
        "Learning",
        "Predicted and actual return",
        "discounted return",
        "evaluation_start_value_mean",
        beside="evaluation_discounted_return_mean",
        note="Solid: max Q in the first states of an evaluation's episodes; dashed: their discounted "
        "returns. Solid well above dashed means that Q is overestimated.",
    ),
    _MetricChart(
        "Learning",
        "Entropy of actions taken",
        "share of its maximum",
        "action_entropy_ratio",
        ("evaluation_action_entropy_ratio",),
    ),
    _MetricChart("Speed", "Acting", "environment steps / s", "env_steps_per_second"),
    _MetricChart("Speed", "Learning", "updates / s", "updates_per_second"),
    _MetricChart("Speed", "Learner updating", "share of time", "learner_update_share"),
    _MetricChart("Speed", "Learner waiting for data", "share of time", "learner_wait_share"),
    _MetricChart("Speed", "Actors working", "share of time, mean", "actor_busy_share"),
    _MetricChart(
        "Data",
        "Samples per insert",
        "sampled / inserted",
        "samples_per_insert",
        beside="samples_per_insert_target",
        note="Dashed: the target.",
    ),
    _MetricChart("Data", "Policy lag of acting", "updates", "policy_lag_updates"),
    _MetricChart("Data", "Replay", "transitions held", "replay_transitions"),
    _MetricChart("Data", "Reuse", "draws of a transition, mean", "reuse_mean"),
    _MetricChart("Fleet", "Replaced roles", "replacements", "restarts_total"),
)


def charts(groups: Sequence[Group], axis: AxisName | None = None) -> tuple[Chart | Bars, ...]:
    """Every chart that has data, ordered by section.

    axis: of all charts over steps, updates or time; None: env steps for learning, time for the rest.
    """
    runs = [(group, run) for group in groups for run in group.runs]
    time = _time_axis([run for _, run in runs])
    axes: Mapping[AxisName, _XAxis] = {"steps": _STEPS, "updates": _UPDATES, "time": time}
    learning, other = (_STEPS, time) if axis is None else (axes[axis], axes[axis])
    found = [
        *_return_charts(groups, learning),
        *(
            _metric_chart(wanted, groups, learning if wanted.section == "Learning" else other)
            for wanted in _METRIC_CHARTS
        ),
        _memory(runs, other),
    ]
    lines = [chart for chart in found if any(len(line.xs) > 1 for line in chart.series)]
    return tuple(sorted([*lines, *_phases(runs)], key=lambda chart: SECTIONS.index(chart.section)))


@dataclass(frozen=True)
class _XAxis:
    """The metric of a horizontal axis, in units of `unit`."""

    metric: str
    label: str
    unit: float = 1.0


_STEPS = _XAxis("env_steps_total", "environment steps")
_UPDATES = _XAxis("updates_total", "updates")
_OVER_SEEDS = (
    "Line: IQM over seeds; band: 95 % bootstrap interval; faint: each seed; dashed: those that go on after "
    "the shortest one."
)


def _time_axis(runs: Sequence[Run]) -> _XAxis:
    longest = max((run.last.get("run_seconds", 0.0) for run in runs), default=0.0)
    name, unit = ("h", 3_600.0) if longest >= 7_200 else ("min", 60.0) if longest >= 300 else ("s", 1.0)
    return _XAxis("run_seconds", f"time since the start ({name})", unit)


def _return_charts(groups: Sequence[Group], axis: _XAxis) -> Iterator[Chart]:
    several = any(len(group.runs) > 1 for group in groups)
    over_seeds = _OVER_SEEDS if several else ""
    one = any(len(group.runs) == 1 for group in groups)
    over_episodes = "Band of one seed: 95 % bootstrap interval of the mean over episodes." if one else ""
    note = " ".join(filter(None, (over_seeds, over_episodes)))
    greedy = tuple(line for group in groups for line in _greedy_return(group, axis))
    wanted = _MetricChart("Learning", "Training return", "return, mean of 100 episodes", "train_return_mean")
    yield Chart("Learning", "Greedy return", axis.label, "return, mean of an evaluation", greedy, note)
    yield _metric_chart(wanted, groups, axis)


def _greedy_return(group: Group, axis: _XAxis) -> Iterator[Series]:
    curves = [
        (moved(run.metrics, xs, axis.metric) / axis.unit, means, episodes)
        for run in group.runs
        for xs, means, episodes in [greedy_curve(run)]
    ]
    if len(group.runs) > 1:
        yield from curve_over_seeds(group, [(xs, means) for xs, means, _ in curves])
        return
    ((xs, means, episodes),) = curves
    if len(xs):
        low, high = bootstrap(episodes, lambda drawn: drawn.mean(axis=-2))
        yield Series(group.label, group.index, _floats(xs), _floats(means), _floats(low), _floats(high))


def moved(lines: Sequence[Line], env_steps: Array, metric: str) -> Array:
    """The values of another growing metric at these env steps, interpolated between lines of metrics."""
    if metric == _STEPS.metric or not len(env_steps):
        return env_steps
    steps, values = columns(lines, _STEPS.metric, metric)
    return np.asarray(np.interp(env_steps, steps, values)) if len(steps) else env_steps


def _metric_chart(wanted: _MetricChart, groups: Sequence[Group], axis: _XAxis) -> Chart:
    alone = sum(len(group.runs) for group in groups) == 1
    several = any(len(group.runs) > 1 for group in groups)
    names = [wanted.metric, *(wanted.more if alone else ()), *([wanted.beside] if wanted.beside else ())]
    series: list[Series] = []
    for group in groups:
        for index, name in enumerate(names):
            curves = [columns(run.metrics, axis.metric, name) for run in group.runs]
            scaled = [(xs / axis.unit, ys) for xs, ys in curves]
            if len(group.runs) > 1 and name != wanted.beside:
                series += curve_over_seeds(group, scaled)
                continue
            label = name.replace("_", " ") if alone and len(names) > 1 else group.label
            color = index if alone else group.index
            style: LineStyle = "dashed" if name == wanted.beside else "solid"
            series += [Series(label, color, *thinned(xs, ys), style=style) for xs, ys in scaled]
    # A chart of zeros only is left out.
    if wanted.metric == "restarts_total" and not any(any(line.ys) for line in series):
        series = []
    note = " ".join(filter(None, (wanted.note, _OVER_SEEDS if several else "")))
    share = wanted.y_label.startswith("share")
    return Chart(wanted.section, wanted.title, axis.label, wanted.y_label, tuple(series), note, share)


def _memory(runs: Sequence[tuple[Group, Run]], time: _XAxis) -> Chart:
    """Resident memory of each role if there is one run, or of all roles of each run."""
    metric, alone = "process_resident_memory_bytes", len(runs) == 1
    series = []
    for group, run in runs:
        known = [line for line in run.metrics if isinstance(line.get(metric), Mapping)]
        memory = [line[metric] if alone else {group.label: sum(line[metric].values())} for line in known]
        lines = [{**line, **shown} for line, shown in zip(known, memory, strict=True)]
        for index, name in enumerate(dict.fromkeys(name for shown in memory for name in shown)):
            xs, ys = columns(lines, time.metric, name)
            color = index if alone else group.index
            series.append(Series(name, color, *thinned(xs / time.unit, ys / 1e6)))
    return Chart("Fleet", "Memory", time.label, "resident memory (MB)", tuple(series))


def _phases(runs: Sequence[tuple[Group, Run]]) -> Iterator[Bars]:
    """The time of each kind of role by phase, with a bar for each run."""
    totals = [(run.name, run.last.get("role_seconds_total")) for _, run in runs]
    known = [(name, by_role) for name, by_role in totals if isinstance(by_role, Mapping)]
    for role in dict.fromkeys(role for _, by_role in known for role in by_role):
        spent = [(name, by_role.get(role, {})) for name, by_role in known]
        phases = tuple(dict.fromkeys(phase for _, seconds in spent for phase in seconds))
        bars = tuple(
            (name, tuple(float(seconds.get(phase, 0.0)) for phase in phases))
            for name, seconds in spent
            if sum(seconds.values()) > 0
        )
        if bars:
            yield Bars("Speed", f"Time of the {role}", phases, bars)
