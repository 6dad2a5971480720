"""TensorBoard event files of a run's figures, where metrics.tensorboard asks for them.

Owns tags and the optional package behind it (extra "tensorboard"); must not import torch or ray.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.metrics.snapshot import Snapshot, known_metrics
from cluster.settings.config import ConfigError, RunConfig
from replay_service.histogram import Histogram

# The package's flush waits for the disk, so not with every snapshot.
_FLUSH_SECONDS = 10.0


def require_tensorboard(config: RunConfig) -> None:
    """Raises ConfigError where the config asks for event files and the package is missing."""
    if config.metrics.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "metrics.tensorboard is true, but tensorboardX is not installed: install the extra "
            "(pip install -e '.[tensorboard]'), or leave it false"
        )


class EventFile:
    """One event file in `folder`: a scalar for each known figure, its step the env steps of the run."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()

    def write(self, snapshot: Snapshot) -> None:
        """Adds a snapshot. Raises OSError where the disk does not take it."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag, simple_value=value)
            for name, figure in known_metrics(snapshot).items()
            for tag, value in scalars(name, figure)
        ]
        event = Event(wall_time=time.time(), step=snapshot.env_steps_total, summary=Summary(value=values))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._writer.flush()

    def close(self) -> None:
        """Writes what is buffered, and ends the file."""
        self._writer.close()


def scalars(name: str, figure: object) -> Iterator[tuple[str, float]]:
    """Tag and value of what a figure holds: labels become parts of the tag, a histogram its mean."""
    if isinstance(figure, Histogram):
        if figure.count:
            yield f"{name}_mean", figure.sum / figure.count
    elif isinstance(figure, Mapping):
        for label, part in figure.items():
            yield from scalars(f"{name}/{label}", part)
    elif isinstance(figure, float | int):
        yield name, figure
