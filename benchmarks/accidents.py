"""Accidents that end a run from outside: signals, terminals, the death of Ray. What is left of the run?

`python -m benchmarks.chaos --accidents` plays them all and writes their table in docs/failures.md; the tests
go through the same functions.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from benchmarks.failures import SMALL, RayNodes, Runtime, arguments, news, ray_nodes
from benchmarks.followed_run import FollowedRun

# What `ray stop` waits for between SIGTERM and SIGKILL, as it does by default.
_RAY_STOP_SECONDS = 16.0
_LEFT_SECONDS = 10.0
_END_SECONDS = 20.0


@dataclass(frozen=True)
class Ended:
    """What became of one run. status: as a shell shows it. seconds: from the accident to the driver's end.

    weights_seconds: from the accident until the newest weights were written; None without weights.
    resumed: the version from which the same command with --resume auto went on; 0: it began anew.
    left: processes, shared memory and temporary files that were still there.
    """

    status: int
    seconds: float
    weights_seconds: float | None
    said: tuple[str, ...]
    resumed: int
    left: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """A run, and the cluster that it is on, if it is on one."""

    run: FollowedRun
    nodes: RayNodes | None

    def servers(self) -> list[psutil.Process]:
        """The processes of the run's Ray."""
        if self.nodes is not None:
            return self.nodes.processes()
        return [process for process in self.run.family() if process.pid != self.run.driver_pid]


@dataclass(frozen=True)
class Accident:
    """strike: does it to a run. status: the right exit status. says: what an event of the run must contain.

    starting: whether it strikes before the roles are up.
    """

    name: str
    title: str
    runtimes: tuple[Runtime, ...]
    strike: Callable[[Scene], None]
    status: int
    says: str
    starting: bool = False


def play(accident: Accident, runtime: Runtime, folder: Path, *, checkpoint: bool) -> Ended:
    """Plays the accident in a run of its own, before or after its first checkpoint, and resumes the run.

    Raises RuntimeError if the run cannot be resumed.
    """
    settings = {
        **SMALL,
        "replay.persist": "continuous" if checkpoint else "checkpoint",
        "checkpoint.every_seconds": "2" if checkpoint else "600",
        "checkpoint.every_updates": "200" if checkpoint else "1000000",
    }
    with ExitStack() as stack:
        nodes = stack.enter_context(ray_nodes(cpus=(12,))) if runtime == "cluster" else None
        run = FollowedRun(
            [*arguments(settings), "--runtime", runtime], folder / "run", nodes.env if nodes else None
        )
        stack.callback(run.close)
        _bring_up(run, accident, runtime, checkpoint=checkpoint)
        run.note_shared_memory()
        events, struck_at = len(run.events()), time.time()
        accident.strike(Scene(run, nodes))
        status = run.finish()
        seconds = time.time() - struck_at
        weights = run.run_dir / "weights" / "latest.safetensors"
        written = weights.stat().st_mtime - struck_at if weights.exists() else None
        said = tuple(text.partition("coordinator/0 ")[2] for text in run.events()[events:])
        left = tuple(run.left(_LEFT_SECONDS) + run.left_files())
        if nodes is not None:
            run.env = stack.enter_context(ray_nodes(cpus=(12,))).env
        return Ended(status, seconds, written, said, _resume(run), left)


def problems(accident: Accident, ended: Ended, *, checkpoint: bool) -> list[str]:
    """What is not as it should be."""
    found = []
    if ended.status != accident.status:
        found.append(f"it ended with {ended.status} instead of {accident.status}")
    if not any(accident.says in text for text in ended.said):
        found.append(f"no event says {accident.says}: {ended.said}")
    if checkpoint and not ended.resumed:
        found.append("it began anew")
    if ended.seconds > _END_SECONDS:
        found.append(f"it took {ended.seconds:.1f} s to end")
    return [*found, *(f"left behind: {each}" for each in ended.left)]


def _bring_up(run: FollowedRun, accident: Accident, runtime: Runtime, *, checkpoint: bool) -> None:
    """Starts the run and waits for the moment at which the accident strikes."""
    run.start(terminal=accident.name == "terminal")
    if checkpoint or not accident.starting:
        run.wait_for(lambda: run.newest()["updates_total"] > 200, "updates")
    if checkpoint:
        run.wait_for(lambda: run.newest()["checkpoints_total"] > 0, "a checkpoint")
    if accident.starting:
        starts = 1
        if checkpoint:
            run.finish(signal.SIGTERM)
            run.start("--resume", "auto")
            starts = 2
        run.wait_for(lambda: run.output().count(" runtime\n") == starts, "the first line")
        if runtime == "ray":
            run.wait_for(lambda: any(each.name() == "gcs_server" for each in run.family()), "Ray")


def _resume(run: FollowedRun) -> int:
    """Resumes the run until it learns, ends it, and returns the version from which it went on."""
    lines, events = len(run.lines()), len(run.events())
    run.start("--resume", "auto")

    def learns() -> bool:
        own = run.lines()[lines:]
        return bool(own and own[-1]["updates_total"] > own[0]["updates_total"])

    run.wait_for(learns, "training that moves")
    status = run.finish(signal.SIGTERM)
    if status != 143:
        raise RuntimeError(f"the resumed run ended with {status}\n{run.output()[-3000:]}")
    said = " ".join(text for text in news(run, events) if "resumed from checkpoint" in text)
    return int(said.partition("version ")[2].replace(",", "") or 0)


def _signal_all(number: signal.Signals, scene: Scene) -> None:
    """Signals every process of the run, the driver last, which is the worst order."""
    for process in sorted(scene.run.family(), key=lambda process: process.pid, reverse=True):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _signal_driver(number: signal.Signals, scene: Scene) -> None:
    assert scene.run.driver is not None
    scene.run.driver.send_signal(number)


def _close_terminal(scene: Scene) -> None:
    scene.run.close_terminal()


def _kill_server(name: str, scene: Scene) -> None:
    next(process for process in scene.servers() if process.name() == name).kill()


def _ray_stop(scene: Scene) -> None:
    """The signals of `ray stop`, which itself would end every Ray on this machine."""
    victims = scene.servers()
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(victims, timeout=_RAY_STOP_SECONDS)
    for process in alive:
        process.kill()


_HERE: tuple[Runtime, ...] = ("local", "ray", "serial")
_ON_RAY: tuple[Runtime, ...] = ("ray", "cluster")
ACCIDENTS = (
    Accident("terminal", "The terminal is closed", _HERE, _close_terminal, 129, "stopped by SIGHUP"),
    Accident("hup", "SIGHUP", _HERE, partial(_signal_driver, signal.SIGHUP), 129, "stopped by SIGHUP"),
    Accident(
        "term",
        "SIGTERM to every process",
        _HERE,
        partial(_signal_all, signal.SIGTERM),
        143,
        "stopped by SIGTERM",
    ),
    Accident(
        "int", "SIGINT to every process", _HERE, partial(_signal_all, signal.SIGINT), 130, "stopped by SIGINT"
    ),
    Accident(
        "start",
        "SIGTERM to every process while it starts",
        _HERE,
        partial(_signal_all, signal.SIGTERM),
        143,
        "stopped by SIGTERM",
        starting=True,
    ),
    Accident(
        "gcs", "Ray's GCS is killed", _ON_RAY, partial(_kill_server, "gcs_server"), 1, "gcs_server (process"
    ),
    Accident(
        "raylet",
        "The driver's raylet is killed",
        _ON_RAY,
        partial(_kill_server, "raylet"),
        1,
        "raylet (process",
    ),
    Accident("ray-stop", "`ray stop` of another project", _ON_RAY, _ray_stop, 1, "`ray stop`"),
)
