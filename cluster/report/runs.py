"""Recorded runs: reads their files, groups them by configuration, and extracts curves and periods.

Owns reading runs of every version of this program; draws nothing. Must not import torch or ray.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np
import yaml

from cluster.metrics.snapshot import Finding, Verdict
from cluster.record.events import Event, read_events
from cluster.record.line_file import read_objects
from cluster.record.run_dir import EVALUATIONS, RESUMES, read_provenance
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.renames import rename_settings, renamed_metrics

_VIDEOS = ("video.mp4", "video.gif")

Line = Mapping[str, Any]
Array = np.ndarray


@dataclass(frozen=True)
class Run:
    """A run read from its directory. settings: full name ("learner.double") -> value."""

    path: Path
    settings: Mapping[str, Any]
    metrics: tuple[Line, ...]
    evaluations: tuple[Line, ...]
    events: tuple[Event, ...]
    provenance: Mapping[str, Any]
    video: Path | None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.absolute().name

    @property
    def last(self) -> Line:
        """Its newest line of metrics; empty before the first."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def end(self) -> str:
        """The end of the run, from its events."""
        ends = [event for event in self.events if event.kind in ("ended", "failed")]
        if not ends:
            return "has not ended"
        return ends[-1].text if ends[-1].kind == "ended" else ends[-1].line


@dataclass(frozen=True)
class Group:
    """Runs that learn by the same settings. index: of its color. label: settings that other groups lack."""

    index: int
    label: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Period:
    """A verdict or warning, with begin and end in run seconds. text: its newest text."""

    kind: str
    began: float
    ended: float
    text: str


def read_run(path: Path) -> Run:
    """Reads a run directory of any version. Raises ConfigError if it holds no run."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no run directory (config.yaml is missing)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path / 'config.yaml'}: cannot be read: {error}") from None
    settings = config if isinstance(config, dict) else {}
    rename_settings(settings)
    metrics: list[Line] = [*map(renamed_metrics, read_objects(path / "metrics.jsonl"))]
    evaluations: list[Line] = [*read_objects(path / EVALUATIONS)]
    if (path / RESUMES).exists():
        # Only resumed runs repeat lines: in others, versions go back where a lost learner was replaced.
        metrics = _without_repeats(metrics, "env_steps_total")
        evaluations = _without_repeats(evaluations, "version")
    return Run(
        path,
        dict(leaves(settings)),
        tuple(metrics),
        tuple(evaluations),
        tuple(read_events(path)),
        _provenance(path),
        next((path / name for name in _VIDEOS if (path / name).is_file()), None),
    )


def _without_repeats(lines: Iterable[Line], counter: str) -> list[Line]:
    """Removes lines that a resumed run wrote again after it went back to a checkpoint; the later ones stay.

    counter: a number that grows from line to line, except where the run went back. A run that went back less
    than one line keeps that line.
    """
    kept: list[tuple[float, Line]] = []
    for line in lines:
        before = kept[-1][0] if kept else -math.inf
        at = line.get(counter)
        at = at if is_number(at) else before
        while at < before and kept and kept[-1][0] >= at:
            kept.pop()
        kept.append((at, line))
    return [line for _, line in kept]


def _provenance(path: Path) -> Mapping[str, Any]:
    try:
        return dict(leaves(read_provenance(path)))
    except ConfigError:
        return {}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full name and value of each setting in nested mappings."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_NOT_OF_LEARNING = (
    *("run.", "stop.", "metrics.", "checkpoint.", "learner.device", "replay.prefetch_requests"),
    *("learner.dense_products", "learner.convolution_layout", "learner.compile", "learner.capture"),
    *("learner.threads",),
    *("replay.persist", "replay.on_disk_full", "replay.compression", "actors.min_actors"),
    *("actors.pushes_in_flight", "actors.env_restarts", "actors.chunk_deadline", "actors.memory_limit"),
)
"""Beginnings of the settings that do not change what is learned."""


def concerns_learning(setting: str) -> bool:
    """Whether a setting changes what is learned: runs that differ in it are no seeds of one group."""
    return not setting.startswith(_NOT_OF_LEARNING)


def groups_of(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Groups runs that learn by the same settings, in the order in which they were given.

    A label leaves out a setting's section, unless another one that differs has the same name.
    """
    different = [name for name in differing(runs) if concerns_learning(name)]
    short = {name: name.partition(".")[2] or name for name in different}
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(repr([run.settings.get(name) for name in different]), []).append(run)
    found = []
    for index, group in enumerate(members.values()):
        parts = [
            f"{short[name] if list(short.values()).count(short[name]) == 1 else name} = "
            f"{group[0].settings.get(name)}"
            for name in different
        ]
        label = ", ".join(parts[:3]) + (", …" if len(parts) > 3 else "")
        found.append(Group(index, label or str(group[0].settings.get("env.id", group[0].name)), tuple(group)))
    return tuple(found)


def differing(runs: Sequence[Run]) -> tuple[str, ...]:
    """Names of the settings that differ between runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return tuple(
        name for name in names if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)
    )


def changed_settings(run: Run) -> tuple[tuple[str, Any, Any], ...]:
    """Name, value and default of each setting that differs from its default."""
    defaults = dict(leaves(msgspec.to_builtins(dataclasses.asdict(RunConfig()))))
    return tuple(
        (name, value, defaults.get(name))
        for name, value in run.settings.items()
        if name not in defaults or defaults[name] != value
    )


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a line is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def columns(lines: Iterable[Line], x: str, y: str) -> tuple[Array, Array]:
    """Two metrics, [N] each, from the lines in which both are finite numbers."""
    pairs = [(line[x], line[y]) for line in lines if is_number(line.get(x)) and is_number(line.get(y))]
    xs, ys = np.array(pairs, np.float64).reshape(-1, 2).T
    return xs, ys


def evaluation_steps(run: Run) -> Array:
    """Env steps at which each evaluated version of a run became the newest, [E]."""
    updates, steps = columns(run.metrics, "weights_version", "env_steps_total")
    if not len(updates):
        updates, steps = columns(run.metrics, "updates_total", "env_steps_total")
    versions = np.array([line.get("version", 0) for line in run.evaluations], np.float64)
    if not len(updates):
        return versions
    if updates[0] > 0:
        # Learning began before the first line of metrics.
        starts = min(float(run.settings.get("pacing.learning_starts", 0)), steps[0])
        updates, steps = np.append(0.0, updates), np.append(starts, steps)
    kept = np.concatenate([[True], np.diff(updates) > 0])
    return np.asarray(np.interp(versions, updates[kept], steps[kept]))


def greedy_curve(run: Run) -> tuple[Array, Array, Array]:
    """Env steps [E], mean return [E] and the episodes' returns [episodes, E] of a run's first evaluations.

    Second evaluations are left out, because only versions that scored well get one.
    """
    first = [
        (step, line["returns"])
        for step, line in zip(evaluation_steps(run), run.evaluations, strict=True)
        if not line.get("confirms") and line.get("returns")
    ]
    fewest = min((len(returns) for _, returns in first), default=0)
    episodes = np.array([returns[:fewest] for _, returns in first], np.float64).T
    means = np.array([np.mean(returns) for _, returns in first])
    return np.array([step for step, _ in first]), means, episodes


def periods(run: Run) -> tuple[Period, ...]:
    """The periods of verdicts and warnings, ordered by their begin.

    A period lasts while every line of metrics has that stage or finding, even if its text changes.
    """
    held: dict[tuple[str, str], Period] = {}
    done: list[Period] = []
    for line in run.metrics:
        now = line.get("run_seconds", 0.0)
        held_now = said(line)
        done += [held.pop(key) for key in list(held) if key not in held_now]
        for key, text in held_now.items():
            began = held[key].began if key in held else now
            held[key] = Period(key[0], began, now, text)
    return tuple(sorted([*done, *held.values()], key=lambda period: period.began))


def said(line: Line) -> dict[tuple[str, str], str]:
    """("verdict", stage) or ("warning", finding) -> text, for the diagnosis in a line of metrics."""
    try:
        verdict = msgspec.convert(line.get("verdict"), Verdict | None)
        warnings = msgspec.convert(line.get("warnings", []), tuple[Finding, ...])
    except msgspec.ValidationError:
        return {}
    found = {} if verdict is None else {("verdict", str(verdict.stage)): verdict.line}
    return found | {("warning", finding.name): finding.text for finding in warnings}
