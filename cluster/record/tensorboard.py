"""TensorBoard event files of a run's metrics, written if metrics.tensorboard is true.

Owns the tags and the use of an optional package (extra "tensorboard"); must not import torch or ray.
"""

import importlib.util
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.metrics.snapshot import Snapshot, known_metrics
from cluster.settings.config import ConfigError, RunConfig
from replay_service.histogram import Histogram

# A flush waits for the disk, so not every snapshot is flushed.
_FLUSH_SECONDS = 10.0


def require_tensorboard(config: RunConfig) -> None:
    """Raises ConfigError if the config asks for event files and the package is missing."""
    if config.metrics.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "metrics.tensorboard is true, but tensorboardX is not installed: install it with "
            "pip install 'qfleet[tensorboard]', or leave it false"
        )


class EventFile:
    """An event file in `folder`, with a scalar for each known metric; the step is the number of env steps."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()

    def write(self, snapshot: Snapshot) -> None:
        """Adds a snapshot. Raises OSError if it cannot be written."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag, simple_value=value)
            for name, metric in known_metrics(snapshot).items()
            for tag, value in scalars(name, metric)
        ]
        event = Event(wall_time=time.time(), step=snapshot.env_steps_total, summary=Summary(value=values))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


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
