"""The process of a tracker: reads what the run writes to it, and passes that to TensorBoard or W&B.

Owns the interface of a tracker; must not import torch or ray. `cluster.record.trackers` is the other end.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from cluster.record.trackers import Begin, File, Finish, Scalars, TrackerMessage


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


_TRACKERS: Mapping[str, Callable[[], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def follow(tracker: Tracker, lines: Iterable[bytes]) -> None:
    """Passes the messages in lines of JSON to the tracker."""
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


def main(name: str) -> None:
    """The process of the tracker of this name."""
    # The run's own process decides: its end is the end of the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow(_TRACKERS[name](), sys.stdin.buffer)
