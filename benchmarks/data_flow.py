"""The data flow by files: which ones a transition passes from `env.step` to the weights learned from it.

Run as `python -m benchmarks.data_flow`. In another checkout, also an older one:
`PYTHONPATH=$PWD python PATH_OF_THIS_FILE`. Nothing is timed.

The script traces one serial run of CartPole with prioritized replay, in rounds. A round opens with the first
step of an environment and closes when an actor's policy has loaded weights that were learned meanwhile. It
holds rollout, block, push, shard, sample, update and weights. The coordinator connects them: it grants
chunks, in which the roles of a serial run do their work, and takes the results. Its other duties do not
count: signals, checkpoints, lines of metrics, conditions to stop. A function is on the way if it runs in more
than half of the rounds. This leaves out rare calls: evaluations, questions to idle roles. Methods that
@dataclass generates count for the file of their class.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import gymnasium

import cluster
from cluster.cli import run

ROOT = Path(cluster.__file__).resolve().parent.parent
COORDINATION = ("Coordinator._grant", "Coordinator._complete")
PACKAGES = ("replay_service", "actors", "learner", "cluster")
UPDATES = 400
SETTINGS = (
    "actors.envs_per_actor=4",
    "actors.steps_per_chunk=8",
    "learner.batch_size=16",
    "learner.updates_per_chunk=8",
    "pacing.learning_starts=64",
    "pacing.samples_per_insert=4",
    f"stop.updates={UPDATES}",
)
"""A chunk of acting pays for a chunk of learning: every round has one of each."""


@dataclass(frozen=True)
class FileOnTheWay:
    """A file of the project: path below its root, number of lines, functions that run in most rounds."""

    path: str
    lines: int
    functions: tuple[str, ...]


@dataclass
class Tracer:
    """A profile function for sys.setprofile: counts in how many rounds each of the project's functions runs.

    It counts calls that the coordinator's methods COORDINATION make, directly or not. rounds: how many are
    closed. ran: (path below root, qualified name) -> number of rounds.
    """

    root: Path
    rounds: int = 0
    ran: Counter[tuple[str, str]] = field(default_factory=Counter)
    _now: set[tuple[str, str]] | None = None
    _coordinating: FrameType | None = None
    _paths: dict[str, str | None] = field(default_factory=dict)

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """Takes one event. Ignores calls of C functions."""
        code = frame.f_code
        if event == "call":
            if self._coordinating is None:
                if code.co_qualname not in COORDINATION:
                    return
                self._coordinating = frame
            if self._now is None:
                if not steps_an_environment(code):
                    return
                self._now = set()
            path = self._path(frame)
            if path is not None:
                self._now.add((path, code.co_qualname))
        elif event == "return":
            if frame is self._coordinating:
                self._coordinating = None
            if self._now is not None and self._loads_new_weights(frame):
                self.rounds += 1
                self.ran.update(self._now)
                self._now = None

    def files(self) -> list[FileOnTheWay]:
        """The files with a function that ran in more than half of the rounds, by path."""
        most = sorted(function for function, rounds in self.ran.items() if rounds > self.rounds / 2)
        return [
            FileOnTheWay(
                path,
                len((self.root / path).read_text("utf-8").splitlines()),
                tuple(name for its_path, name in most if its_path == path),
            )
            for path in sorted({path for path, _ in most})
        ]

    def _loads_new_weights(self, frame: FrameType) -> bool:
        """Whether the frame is that of a policy's load, after a chunk of learning in this round."""
        loads = frame.f_code.co_name == "load" and self._path(frame) == "actors/policy.py"
        return loads and any(name == "LearnerRole.learn" for _, name in self._now or ())

    def _path(self, frame: FrameType) -> str | None:
        """The path, below root, of the file whose function runs; None for files of others."""
        filename = frame.f_code.co_filename
        if filename == "<string>":
            # @dataclass generated the method; `self` tells the class.
            module = sys.modules.get(type(frame.f_locals.get("self")).__module__)
            filename = getattr(module, "__file__", None) or ""
        if filename not in self._paths:
            path = Path(filename)
            ours = path.is_relative_to(self.root) and path.relative_to(self.root).parts[0] in PACKAGES
            self._paths[filename] = path.relative_to(self.root).as_posix() if ours else None
        return self._paths[filename]


def steps_an_environment(code: CodeType) -> bool:
    """Whether the code is the `step` of one of gymnasium's environments."""
    return code.co_name == "step" and Path(code.co_filename).is_relative_to(
        Path(gymnasium.__file__).parent / "envs"
    )


def trace(settings: tuple[str, ...] = SETTINGS) -> Tracer:
    """Traces a run with these settings. Drops what the command prints.

    Raises RuntimeError if the run fails or has fewer than ten rounds.
    """
    tracer = Tracer(ROOT)
    said = io.StringIO()
    sets = [part for value in ("replay.sampling=prioritized", *settings) for part in ("--set", value)]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        sys.setprofile(tracer)
        try:
            status = run(["train", "CartPole-v1", "--runtime", "serial", "--run-dir", f"{folder}/run", *sets])
        finally:
            sys.setprofile(None)
    if status != 0:
        raise RuntimeError(f"the run ended with exit status {status}:\n{said.getvalue()}")
    if tracer.rounds < 10:
        raise RuntimeError(f"{tracer.rounds} rounds only:\n{said.getvalue()}")
    return tracer


def main() -> None:
    """Prints the table."""
    tracer = trace()
    files = tracer.files()
    print(f"{ROOT}: files on the way of a transition; {tracer.rounds} rounds traced")
    print(f"{'lines':>6s} {'functions':>9s}  file")
    for file in files:
        print(f"{file.lines:6,d} {len(file.functions):9d}  {file.path}")
    functions = sum(len(file.functions) for file in files)
    print(f"{sum(file.lines for file in files):6,d} {functions:9d}  {len(files)} files")


if __name__ == "__main__":
    main()
