"""TensorBoard's event files of a run: metrics by group, settings as text, results as hyperparameters.

Owns the use of an optional package (extra "tensorboard"); must not import torch or ray.
"""

import time
from pathlib import Path
from typing import Any

from cluster.record.tracker_messages import HEADLINES, Begin, File, Finish, Scalars

# A flush waits for the disk, so not every snapshot is flushed.
_FLUSH_SECONDS = 10.0


class EventFile:
    """An event file in RUN_DIR/tensorboard; the step is the number of env steps. Each raises OSError."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._flushed = time.monotonic()
        self._step = 0

    def begin(self, begin: Begin) -> None:
        """Opens the file, and adds the settings as text and as hyperparameters."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import hparams, text

        folder = Path(begin.run_dir) / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        indented = begin.text.replace("\n", "\n    ")  # Markdown's form of code
        self._add(text("settings", f"    {indented}"))
        settings = {name: str(value) if value is None else value for name, value in begin.settings.items()}
        experiment, start, self._end = hparams(settings, dict.fromkeys(HEADLINES, 0.0))
        self._add(experiment)
        self._add(start)

    def scalars(self, scalars: Scalars) -> None:
        """Adds the numbers."""
        from tensorboardX.proto.summary_pb2 import Summary

        self._step = scalars.env_steps
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.values.items()]
        self._add(Summary(value=values), scalars.seconds)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._writer.flush()

    def file(self, file: File) -> None:
        """Never called: TensorBoard keeps no files, and these lie beside its own."""

    def finish(self, finish: Finish) -> None:
        """Adds how the run ended, and closes the file."""
        from tensorboardX.summary import text

        self._add(text("end", finish.reason))
        self._add(self._end)
        self._writer.close()

    def _add(self, summary: Any, seconds: float | None = None) -> None:
        from tensorboardX.proto.event_pb2 import Event

        now = time.time() if seconds is None else seconds
        self._writer.write_event(Event(wall_time=now, step=self._step, summary=summary))
