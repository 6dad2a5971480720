"""The process of a tracker: reads what the run writes to it, and passes that to TensorBoard or W&B.

Owns the interface of a tracker; must not import torch or ray. `cluster.record.trackers` is the other end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from cluster.record.tracker_messages import Begin, File, Finish, Scalars, TrackerMessage


class Tracker(Protocol):
    """Keeps a run. It may raise and be slow, as it has a process of its own."""

    def begin(self, begin: Begin) -> None:
        """The run begins, or goes on; called first."""

    def scalars(self, scalars: Scalars) -> None:
        """Metrics were taken."""

    def file(self, file: File) -> None:
        """A file of the run has new content."""

    def finish(self, finish: Finish) -> None:
        """The run has ended; called last, unless the run's process was killed."""


def _tensorboard() -> Tracker:
    from cluster.record.tensorboard import EventFile

    return EventFile()


def _wandb() -> Tracker:
    from cluster.record.wandb_run import WandbRun

    return WandbRun()


# tensorboardX and W&B load them where they can, which takes seconds, for kinds of data that no run sends.
_LEFT_OUT = ("torch", "pandas")
_TRACKERS: Mapping[str, Callable[[], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def follow(tracker: Tracker, lines: Iterable[bytes]) -> bool:
    """Passes the messages in lines of JSON to the tracker; returns whether the last one was the run's end."""
    decoder = msgspec.json.Decoder(TrackerMessage)
    for line in lines:
        match decoder.decode(line):
            case Begin() as begin:
                tracker.begin(begin)
            case Scalars() as numbers:
                tracker.scalars(numbers)
            case File() as file:
                tracker.file(file)
            case Finish() as finish:
                tracker.finish(finish)
                return True
    return False


def main(name: str) -> None:
    """The process of the tracker of this name."""
    # The run's own process decides: its end is the end of the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.modules.update(dict.fromkeys(_LEFT_OUT))  # type: ignore[arg-type] # as Python marks what it must not load
    if follow(_TRACKERS[name](), sys.stdin.buffer):
        # All is written, and the run waits: taking down an interpreter of so many modules takes a while.
        sys.stdout.flush()
        os._exit(0)
