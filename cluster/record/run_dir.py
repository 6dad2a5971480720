"""The run directory: writes the records of a run, and reads them back.

Owns file names and formats; reading it executes nothing. Must not import torch or ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from actors.core import EnvSpec, EvaluationReport
from cluster.control.evaluation import EvaluationRequest
from cluster.engines.threads import available_cores
from cluster.metrics.snapshot import Snapshot, known_metrics
from cluster.record.events import LEVELS, Event, events_path
from cluster.record.line_file import LineFile
from cluster.record.logs import LogSource
from cluster.record.tensorboard import EventFile
from cluster.settings.config import ConfigError
from cluster.settings.load_config import dump_config, load_resolved
from cluster.settings.resolved import ResolvedConfig
from learner.weights import load_weights, save_weights

RESUMES = "resumes.jsonl"
WeightsName = Literal["best", "latest"]
_PACKAGES = ("ray", "torch", "gymnasium", "numpy", "msgpack", "prometheus-client")


class RunDir:
    """A run directory that this process writes.

    logs: folder of the events and of each role's output. replay: folder of the shards' journals, made by the
    first shard that keeps one. checkpoints: folder made by the first checkpoint.
    """

    def __init__(self, path: Path, *, tensorboard: bool = False) -> None:
        """Raises ConfigError if another process uses this folder, OSError if a file cannot be opened."""
        self.path = path
        self.logs, self.replay, self.checkpoints = (path / name for name in ("logs", "replay", "checkpoints"))
        # The lock is held until this process ends, however it ends.
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError(f"run directory {path}: another process is running in it") from None
        self._event_file = EventFile(path / "tensorboard") if tensorboard else None
        self._metrics = LineFile(path / "metrics.jsonl")
        self._evaluations = LineFile(path / "evaluations.jsonl")

    @classmethod
    def create(
        cls,
        path: Path,
        config: ResolvedConfig,
        spec: EnvSpec,
        initial_weights: Mapping[str, str] | None = None,
    ) -> RunDir:
        """Creates the folder, config.yaml and provenance.json. initial_weights: the origin of given weights.

        Raises:
            ConfigError: the folder is not empty, or cannot be written.
        """
        refuse_unusable(path)
        try:
            for folder in (path, path / "weights", path / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
            (path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
            origin = {} if initial_weights is None else {"initial_weights": dict(initial_weights)}
            provenance = _provenance(spec) | origin
            (path / "provenance.json").write_text(json.dumps(provenance, indent=2), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"run directory {path}: cannot be written: {error}") from None
        return cls(path, tensorboard=config.metrics.tensorboard)

    @classmethod
    def reopen(
        cls, path: Path, config: ResolvedConfig, checkpoint: int | None, changed: Mapping[str, Any]
    ) -> RunDir:
        """Opens the folder of a run that is resumed, and adds a line to resumes.jsonl.

        Args:
            checkpoint: number of the checkpoint that the run continues from; None: from the beginning.
            changed: the settings that were changed, with their values.

        Raises:
            ConfigError: another process uses the folder, or it cannot be written.
        """
        note = {
            "checkpoint": -1 if checkpoint is None else checkpoint,
            "time": time.time(),
            "command": sys.argv,
            "host": platform.node(),
            "changed": changed,
        }
        try:
            run_dir = cls(path, tensorboard=config.metrics.tensorboard)
            partial = path / "config.yaml.partial"
            partial.write_text(dump_config(config), encoding="utf-8")
            partial.replace(path / "config.yaml")
            with contextlib.closing(LineFile(path / RESUMES)) as resumes:
                resumes.write(json.dumps(note, default=str))
        except OSError as error:
            raise ConfigError(f"run directory {path}: cannot be written: {error}") from None
        return run_dir

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Adds a line to metrics.jsonl, and to the TensorBoard events if there are any."""
        self._metrics.write(msgspec.json.encode(known_metrics(snapshot)).decode())
        if self._event_file is not None:
            self._event_file.write(snapshot)

    def write_event(self, event: Event) -> None:
        """Adds a line to logs/events.log, or several for a text of several lines."""
        now = time.time()
        source = LogSource("coordinator", 0, now - event.run_seconds)
        with events_path(self.path).open("a", encoding="utf-8") as file:
            file.write(source.lines(LEVELS[event.kind], event.text, now))

    def write_evaluation(self, request: EvaluationRequest, report: EvaluationReport) -> None:
        """Adds a line to evaluations.jsonl, with the return of every episode."""
        line = {
            "version": report.version,
            "seed_domain": report.seed_domain,
            "confirms": request.confirms,
            "return_mean": float(np.mean(report.returns)),
            "return_std": float(np.std(report.returns)),
            "returns": list(report.returns),
            "lengths": list(report.lengths),
            "seconds": round(report.seconds, 4),
        }
        self._evaluations.write(json.dumps(line))

    def write_weights(self, name: WeightsName, flat: np.ndarray, facts: Mapping[str, str]) -> None:
        """Replaces weights/NAME.safetensors by flat [P] float32; readers see the old or the new file."""
        save_weights(self.path / "weights" / f"{name}.safetensors", flat, facts)

    def close(self) -> None:
        """Closes the files and lets another process run here."""
        events = (self._event_file,) if self._event_file else ()
        for file in (self._metrics, self._evaluations, *events, self._lock):
            with contextlib.suppress(OSError):  # a full disk, which the recorder has reported
                file.close()


def holds_run(path: Path) -> bool:
    """Whether the folder holds a run (a config.yaml)."""
    return (path / "config.yaml").is_file()


def refuse_unusable(path: Path) -> None:
    """Raises ConfigError if `path` is a file or a folder that is not empty, or cannot be written."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"run directory {path}: {nearest} cannot be written; choose another with --run-dir")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        problem, remedy = (
            ("already holds a run", "resume that run with --resume")
            if holds_run(path)
            else ("exists and is not empty", "move this one away")
        )
        raise ConfigError(
            f"run directory {path}: {problem}, and nothing is overwritten; "
            f"choose another with --run-dir, or {remedy}"
        )


def read_config(path: Path) -> ResolvedConfig:
    """The configuration of a run. Raises ConfigError if there is none."""
    file = path / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{path}: no run directory (config.yaml is missing)")
    try:
        return load_resolved(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None


def read_weights(
    path: Path, which: WeightsName | None = None
) -> tuple[WeightsName, np.ndarray, Mapping[str, str]]:
    """Name, flat weights [P] float32 and facts of a run's weights; by default the best, else the latest.

    Raises ConfigError if there are no such weights.
    """
    names: tuple[WeightsName, ...] = ("best", "latest") if which is None else (which,)
    for name in names:
        file = path / "weights" / f"{name}.safetensors"
        if file.is_file():
            try:
                flat, facts = load_weights(file)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{file}: cannot be read: {error}") from error
            return name, flat, facts
    if which == "best":
        raise ConfigError(
            f"{path}: holds no best weights, because no version was confirmed; take --which latest"
        )
    raise ConfigError(f"{path}: holds no weights yet; a run writes them after its first update")


def read_provenance(path: Path) -> Mapping[str, Any]:
    """provenance.json of a run. Raises ConfigError if there is none."""
    file = path / "provenance.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error


def read_spec(path: Path) -> EnvSpec:
    """The properties of a run's environment. Raises ConfigError if provenance.json lacks them."""
    try:
        return msgspec.convert(read_provenance(path)["environment"], EnvSpec)
    except (KeyError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{path / 'provenance.json'}: does not describe the run's environment: {error!r}"
        ) from error


def _provenance(spec: EnvSpec) -> dict[str, Any]:
    return {
        "environment": asdict(spec),
        "command": sys.argv,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        git = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
