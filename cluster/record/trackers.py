"""Trackers: programs such as TensorBoard that get the metrics, settings, weights and report of a run.

Owns their process, which a run never waits for but at its end, and the messages that it gets; must not import
torch or ray. `cluster.record.tracking` is the other end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Literal

import msgspec

from cluster.engines.own_code import OWN_ROOT
from cluster.metrics.snapshot import Snapshot, known_metrics
from cluster.record.logs import log_path
from cluster.record.run_events import (
    CheckpointSaved,
    Ended,
    Evaluated,
    Measured,
    NewBest,
    RunEvent,
    Started,
)
from cluster.record.tracker_messages import HEADLINES, Begin, File, Finish, Scalars, TrackerMessage
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.load_config import dump_config
from cluster.settings.resolved import ResolvedConfig
from replay_service.histogram import Histogram

TrackerName = Literal["tensorboard", "wandb"]
_MODULES: Mapping[TrackerName, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
# A run that wants all cores gets them; a tracker catches up when it is over.
_CODE = (
    "import os, sys; os.nice(10); sys.path.insert(0, sys.argv.pop(1)); "
    "from cluster.record.tracking import main; main(sys.argv[1])"
)
KEEPING_FILES: Set[TrackerName] = {"wandb"}
"""Trackers that keep files of a run; the others get none."""
_QUEUED = 256
_CLOSE_SECONDS = 30.0


def require_trackers(config: RunConfig) -> None:
    """Raises ConfigError if the config asks for a tracker whose package is missing."""
    for name in config.metrics.trackers:
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise ConfigError(
                f"metrics.trackers names {name}, but {_MODULES[name]} is not installed: install it with "
                f"pip install 'qfleet[{name}]', or leave it out"
            )


def scalars(name: str, metric: object) -> Iterator[tuple[str, float]]:
    """Tags and values of a metric: its labels become parts of the tag, a histogram becomes its mean."""
    if isinstance(metric, Histogram):
        if metric.count:
            yield f"{name}_mean", metric.sum / metric.count
    elif isinstance(metric, Mapping):
        for label, part in metric.items():
            yield from scalars(f"{name}/{label}", part)
    elif isinstance(metric, float | int):
        yield name, metric


def grouped(snapshot: Snapshot) -> dict[str, float]:
    """Every known number of a snapshot as "group/name"; what callbacks added as "custom/name"."""
    known = known_metrics(snapshot)
    return {
        tag if tag.startswith("custom/") else f"{item.metadata['group']}/{tag}": value
        for item in dataclasses.fields(snapshot)
        if item.name in known
        for tag, value in scalars(item.name, known[item.name])
    }


def flat_settings(config: ResolvedConfig) -> dict[str, str | float | bool | None]:
    """Full name -> value of each setting; lists and arguments of environments as JSON."""
    sections = msgspec.to_builtins(dataclasses.asdict(config))  # which keeps defaults
    return {
        f"{section}.{name}": value
        if isinstance(value, str | float | int | None)
        else msgspec.json.encode(value).decode()
        for section, settings in sections.items()
        for name, value in settings.items()
    }


class TrackerProcess:
    """A tracker in a process of its own. `take` never waits: a slow one gets fewer metrics."""

    def __init__(self, name: TrackerName, run_dir: Path) -> None:
        """Starts the process; what it prints goes to the run's logs. Raises OSError."""
        self.name = name
        self._run_dir = run_dir
        self._log = log_path(run_dir / "logs", f"tracker-{name}")
        self._queue: queue.SimpleQueue[TrackerMessage | None] = queue.SimpleQueue()
        self._left_out = 0
        self._results: dict[str, float] = {}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, str(OWN_ROOT), name],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A signal to the run means the run, which then ends its trackers in order.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self._writer = threading.Thread(target=self._write, daemon=True, name=f"tracker {name}")
        self._writer.start()

    def take(self, event: RunEvent) -> str | None:
        """Passes an event on; returns what happened to the tracker once it is gone, else None."""
        if (status := self._process.poll()) is not None:
            self.let_end()
            return f"tracker {self.name} ended with status {status} and gets nothing more; see {self._log}"
        for message in self._messages(event):
            if isinstance(message, Scalars) and self._queue.qsize() >= _QUEUED:
                self._left_out += 1
            elif not isinstance(message, File) or self.name in KEEPING_FILES:
                self._queue.put(message)
        return None

    def close(self) -> str | None:
        """Waits 30 s at most until all is written, and ends the process; returns what was lost, if any."""
        self.let_end()
        self._writer.join(_CLOSE_SECONDS)
        if self._writer.is_alive():
            self._process.kill()
            self._writer.join()
            return f"tracker {self.name} had not written all after {_CLOSE_SECONDS:.0f} s and was ended"
        if status := self._process.returncode:
            return f"tracker {self.name} ended with status {status}; see {self._log}"
        if self._left_out:
            return f"tracker {self.name} was too slow: {self._left_out} times it did not get the metrics"
        return None

    def let_end(self) -> None:
        """Lets the process end by itself, after what it has been told, without waiting for it."""
        self._queue.put(None)

    def _messages(self, event: RunEvent) -> Iterator[TrackerMessage]:
        """What the tracker is told of an event."""
        match event:
            case Started(run_dir, config):
                yield Begin(str(run_dir), flat_settings(config), dump_config(config))
                yield File("config", str(run_dir / "config.yaml"))
            case Measured(snapshot):
                values = grouped(snapshot)
                self._results = {tag: values[tag] for tag in HEADLINES if tag in values}
                yield Scalars(snapshot.env_steps_total, time.time(), values)
            case NewBest(_, _, weights):
                yield File("best", str(weights))
            case Ended(reason, failed):
                yield File("metrics", str(self._run_dir / "metrics.jsonl"))
                if (report := self._run_dir / "report.html").is_file():
                    yield File("report", str(report))
                yield Finish(reason, failed, self._results)
            case Evaluated() | CheckpointSaved():
                pass

    def _write(self) -> None:
        """Writes messages as lines of JSON until there are no more or the process is gone; awaits its end."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError), pipe:
            while (message := self._queue.get()) is not None:
                pipe.write(msgspec.json.encode(message) + b"\n")
                pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()
        self._process.wait()
