"""The run directory: writes the records of a run, and reads them back.

Owns file names and formats; reading it executes nothing. Must not import torch or ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
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
from cluster.record.run_lock import LOCK_FILES, RunLock
from cluster.settings.config import ConfigError
from cluster.settings.load_config import dump_config, load_resolved
from cluster.settings.renames import with_meanings
from cluster.settings.resolved import ResolvedConfig
from learner.weights import load_weights, save_weights
from replay_service.journal.durable_files import write_whole

RESUMES = "resumes.jsonl"
EVALUATIONS = "evaluations.jsonl"
_CONFIG = "config.yaml"
_PROVENANCE = "provenance.json"
_INCARNATIONS = "incarnations.json"
WeightsName = Literal["best", "latest"]
_PACKAGES = ("ray", "torch", "gymnasium", "numpy", "msgpack", "prometheus-client")


class RunDir:
    """A run directory that this process writes.

    logs: folder of the events and of each role's output. replay: folder of the shards' journals, made by the
    first shard that keeps one. checkpoints: folder made by the first checkpoint.
    """

    def __init__(self, lock: RunLock) -> None:
        """lock: the folder's; `close` releases it. Raises OSError if a file cannot be opened."""
        self.path = path = lock.path
        self.logs, self.replay, self.checkpoints = (path / name for name in ("logs", "replay", "checkpoints"))
        self.weaknesses = lock.weaknesses
        self._lock = lock
        self._metrics = LineFile(path / "metrics.jsonl")
        self._evaluations = LineFile(path / EVALUATIONS)

    @classmethod
    def create(
        cls,
        path: Path,
        config: ResolvedConfig,
        spec: EnvSpec,
        initial_weights: Mapping[str, str] | None = None,
    ) -> RunDir:
        """Creates the folder, config.yaml and provenance.json. initial_weights: see describe.

        Raises:
            ConfigError: the folder is not empty, is in use, or cannot be written.
        """
        with _writable(path), contextlib.ExitStack() as unless_created:
            path.mkdir(parents=True, exist_ok=True)
            lock = unless_created.enter_context(contextlib.closing(RunLock(path)))
            # Another process may have begun a run here since the command looked.
            refuse_unusable(path)
            for folder in (path / "weights", path / "logs"):
                folder.mkdir(exist_ok=True)
            _describe(path, config, spec, initial_weights)
            run_dir = cls(lock)
            unless_created.pop_all()
        return run_dir

    @classmethod
    def reopen(
        cls, lock: RunLock, config: ResolvedConfig, checkpoint: int | None, changed: Mapping[str, Any]
    ) -> RunDir:
        """Opens the folder of a run that is resumed, and adds a line to resumes.jsonl.

        Args:
            lock: of the folder; `close` releases it.
            checkpoint: number of the checkpoint that the run continues from; None: from the beginning.
            changed: the settings that were changed, with their values.

        Raises:
            ConfigError: the folder cannot be written.
        """
        note = {
            "checkpoint": -1 if checkpoint is None else checkpoint,
            "time": time.time(),
            "command": sys.argv,
            "host": platform.node(),
            "changed": changed,
        }
        with _writable(lock.path):
            for folder in (lock.path / "weights", lock.path / "logs"):
                folder.mkdir(exist_ok=True)
            run_dir = cls(lock)
            write_whole(lock.path / _CONFIG, dump_config(config).encode())
            with contextlib.closing(LineFile(lock.path / RESUMES)) as resumes:
                resumes.write(json.dumps(note, default=str))
        return run_dir

    def describe(
        self, config: ResolvedConfig, spec: EnvSpec, initial_weights: Mapping[str, str] | None
    ) -> None:
        """Writes provenance.json and config.yaml of a run that begins. Raises ConfigError.

        initial_weights: the origin of given weights.
        """
        with _writable(self.path):
            _describe(self.path, config, spec, initial_weights)

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Adds a line to metrics.jsonl."""
        self._metrics.write(msgspec.json.encode(known_metrics(snapshot)).decode())

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

    def write_incarnations(self, started: Mapping[str, int]) -> None:
        """Notes that roles (by name) are about to start as these incarnations; see read_incarnations."""
        newest = read_incarnations(self.path)
        for role, incarnation in started.items():
            newest[role] = max(newest.get(role, 0), incarnation)
        write_whole(self.path / _INCARNATIONS, msgspec.json.encode(newest))

    def write_weights(self, name: WeightsName, flat: np.ndarray, facts: Mapping[str, str]) -> None:
        """Replaces weights/NAME.safetensors by flat [P] float32; readers see the old or the new file."""
        save_weights(self.path / "weights" / f"{name}.safetensors", flat, facts)

    def close(self) -> None:
        """Closes the files and lets another process run here."""
        for file in (self._metrics, self._evaluations, self._lock):
            with contextlib.suppress(OSError):  # a full disk, which the recorder has reported
                file.close()


def holds_run(path: Path) -> bool:
    """Whether the folder holds a run (a config.yaml)."""
    # Not Path.is_file, which raises OSError for a name that is too long to be one.
    return os.path.isfile(path / _CONFIG)


def refuse_unusable(path: Path) -> None:
    """Raises ConfigError if `path` is a file or a folder that is not empty, or cannot be written.

    A start that was killed before it had written config.yaml leaves nothing worth keeping: that counts as
    empty.
    """
    nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"run directory {path}: {nearest} cannot be written; choose another with --run-dir")
    if not os.path.exists(path):
        _refuse_name(path)
    elif not path.is_dir() or not all(map(_is_left_by_a_start, path.iterdir())):
        problem, remedy = (
            ("already holds a run", "resume that run with --resume")
            if holds_run(path)
            else ("exists and is not empty", "move this one away")
        )
        raise ConfigError(
            f"run directory {path}: {problem}, and nothing is overwritten; "
            f"choose another with --run-dir, or {remedy}"
        )


def _refuse_name(path: Path) -> None:
    """Raises ConfigError if no folder can be made at a path where nothing is."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"run directory {path}: {error.strerror}; choose another with --run-dir") from error
    raise ConfigError(
        f"run directory {path}: is a link to {os.readlink(path)}, which is not there; make that folder, or "
        "choose another with --run-dir"
    )


def _is_left_by_a_start(file: Path) -> bool:
    """Whether a start that was killed may have left this file or folder before there was a run."""
    names = (*LOCK_FILES, _PROVENANCE, *(f"{name}.partial" for name in (_PROVENANCE, _CONFIG)))
    return file.name in names or (file.name in ("weights", "logs") and not any(file.iterdir()))


def read_incarnations(path: Path) -> dict[str, int]:
    """Role name -> the highest incarnation that ever began in this run; empty if none was noted.

    Raises ConfigError if the file is damaged.
    """
    file = path / _INCARNATIONS
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{file}: cannot be read ({error}); move it away to resume the run") from error


def read_config(path: Path) -> ResolvedConfig:
    """The configuration of a run. Raises ConfigError if there is none."""
    file = path / _CONFIG
    if not os.path.exists(path):
        raise ConfigError(f"{path}: no run directory: there is no such folder (qfleet runs lists all runs)")
    if not os.path.isfile(file):
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
    file = path / _PROVENANCE
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error


def read_spec(path: Path) -> EnvSpec:
    """The properties of a run's environment. Raises ConfigError if provenance.json lacks them."""
    try:
        return msgspec.convert(with_meanings(read_provenance(path)["environment"]), EnvSpec)
    except (KeyError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"{path / _PROVENANCE}: does not describe the run's environment: {error!r}"
        ) from error


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Turns an OSError within the block into a ConfigError that names the run directory."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"run directory {path}: cannot be written: {error}") from None


def _describe(
    path: Path, config: ResolvedConfig, spec: EnvSpec, initial_weights: Mapping[str, str] | None
) -> None:
    """Writes both files that make a folder a run. Raises OSError."""
    origin = {} if initial_weights is None else {"initial_weights": dict(initial_weights)}
    provenance = _provenance(spec) | origin
    write_whole(path / _PROVENANCE, json.dumps(provenance, indent=2).encode())
    # Last: a folder with this file holds a run, which can be resumed.
    write_whole(path / _CONFIG, dump_config(config).encode())


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
