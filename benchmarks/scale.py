"""The load of up to a thousand actors on a real coordinator, real shards and a real learner.

Run as `python -m benchmarks.scale [LOAD …] [--actors N …] [--seconds S] [--engine Ray]`; loads are slow,
atari and fast; Ray is a private one. A crowd (`benchmarks/crowd.py`) speaks for all actors, so that two cores
carry them: only acting is left out. A fresh process runs the coordinator for each load and number of actors,
and the script prints

- processors kept busy by coordinator, shards, learner, crowd and Ray's servers, and by all that the machine
  does; the coordinator's CPU time for each chunk of acting and for each actor and second, and the shards' for
  each block;
- how long actors wait for a credit: from the report of a chunk until the next credit comes (another chunk is
  in work meanwhile), and how long they idle;
- the seconds until every actor has a version of the weights, counted from the first one that gets it;
- size and CPU time of a scrape of /metrics; seconds until all roles are up;
- by how much the samples per insert are off their target, over the run and within the time measured.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.engines.threads import SINGLE_THREADED

os.environ.update(SINGLE_THREADED)  # read by numpy when it loads, as in a real run

import numpy as np
import psutil

from benchmarks.crowd import record
from benchmarks.process_crowd import CrowdProcessEngine
from benchmarks.processor import processor
from benchmarks.ray_crowd import CrowdRayEngine
from cluster.api import prepare
from cluster.lives import Lives
from cluster.metrics.snapshot import Snapshot
from cluster.record.events import Event
from cluster.record.prometheus import MetricsServer
from cluster.record.recorder import NewestSnapshot, Recorder
from cluster.record.run_dir import RunDir
from cluster.settings.load_config import load_config

ACTORS = (16, 64, 256, 1_000)
_SETTLE_SECONDS = 5.0
_SCRAPES = 20
_VERSIONS = 20
_ROLES = {
    "qf shard": "shards",
    "qf learner": "learner",
    "ray::ShardRole": "shards",
    "ray::LearnerRo": "learner",
    "raylet": "Ray's servers",
    "gcs_server": "Ray's servers",
}
"""How the name of a process begins, of 15 characters at most -> role."""
_COMMON = (
    "run.runtime=local",
    "replay.persist=none",
    "evaluation.every_updates=1000000000",
    "stop.env_steps=1000000000",
    "stop.target_return=1000000",
)
_CARTPOLE = (
    "env.id=CartPole-v1",
    "actors.envs_per_actor=8",
    "actors.steps_per_chunk=8",
    "replay.capacity=200000",
    "learner.hidden_sizes=[64]",
    "learner.batch_size=64",
    "learner.updates_per_chunk=4",
    "pacing.samples_per_insert=0.5",
    "pacing.learning_starts=128",
)
_PONG = (
    "env.id=ALE/Pong-v5",
    "actors.envs_per_actor=1",
    "actors.steps_per_chunk=16",
    "replay.capacity=40000",
    "learner.network=nature_cnn",
    "learner.batch_size=32",
    "learner.updates_per_chunk=1",
    "pacing.samples_per_insert=0.05",
    "pacing.learning_starts=128",
)


@dataclass(frozen=True)
class Load:
    """What all actors do. seconds: how long to measure; long enough for each actor to end a chunk."""

    chunk_seconds: float
    settings: tuple[str, ...]
    seconds: float


LOADS = {
    "slow": Load(30.0, _CARTPOLE, 40.0),
    "atari": Load(2.5, _PONG, 15.0),
    "fast": Load(1.0, _CARTPOLE, 15.0),
}


@dataclass(frozen=True)
class Moment:
    """Totals of a run at a time on the monotonic clock; busy: seconds of processor by role so far."""

    at: float
    busy: Mapping[str, float]
    inserted: int
    sampled: int
    shard_seconds: float


class Watch:
    """Takes a moment once the run has settled and another one later, then scrapes the run and stops it."""

    def __init__(self, url: str, crowd: int, seconds: float) -> None:
        """crowd: its process."""
        self._url, self._crowd, self._seconds = urlsplit(url), psutil.Process(crowd), seconds
        self._learning_since: float | None = None
        self.moments: list[Moment] = []
        self.up_seconds = self.scrape_seconds = 0.0
        self.scrape_bytes = 0
        self.last: Snapshot | None = None

    def event(self, event: Event) -> None:
        """Notes when all roles are up, and shows what goes wrong."""
        if event.text.startswith("all roles are up"):
            self.up_seconds = event.run_seconds
        if event.kind in ("warning", "failed"):
            print(event.text, file=sys.stderr)

    def metrics(self, snapshot: Snapshot) -> None:
        """See the class."""
        now = time.monotonic()
        if self._learning_since is None:
            if snapshot.updates_total and self.up_seconds:
                self._learning_since = now
        elif not self.moments and now - self._learning_since >= _SETTLE_SECONDS:
            self.moments.append(self._moment(snapshot))
        elif len(self.moments) == 1 and now - self.moments[0].at >= self._seconds:
            self.moments.append(self._moment(snapshot))
            self.last = snapshot
            self._scrape()

    def stop(self) -> str | None:
        """The reason to stop, once there are two moments."""
        return "measured" if self.last is not None else None

    def _moment(self, snapshot: Snapshot) -> Moment:
        own = psutil.Process()
        busy = {"coordinator": time.process_time(), "crowd": sum(self._crowd.cpu_times()[:2])}
        for process in own.children(recursive=True):
            for start, role in _ROLES.items():
                if process.name().startswith(start):
                    busy[role] = busy.get(role, 0.0) + sum(process.cpu_times()[:2])
        busy["machine"] = sum(psutil.cpu_times()[:3])
        shard_seconds = (snapshot.role_seconds_total or {}).get("shard", {}).get("insert", 0.0)
        totals = snapshot.inserted_transitions_total, snapshot.sampled_transitions_total
        return Moment(time.monotonic(), busy, *totals, shard_seconds)

    def _scrape(self) -> None:
        """Scrapes while the coordinator waits for this call, so that its process does nothing else."""
        began = time.process_time()
        for _ in range(_SCRAPES):
            with socket.create_connection((self._url.hostname, self._url.port or 80)) as client:
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                self.scrape_bytes = sum(map(len, iter(lambda: client.recv(1 << 16), b"")))
        self.scrape_seconds = (time.process_time() - began) / _SCRAPES


def measure(load: Load, num_actors: int, seconds: float, *, over_ray: bool) -> dict[str, float]:
    """What one run measures; see the module."""
    prepared = prepare(load_config(None, [*_COMMON, *load.settings, f"actors.num_actors={num_actors}"]))
    recording = record(prepared.config, prepared.spec)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        engine: CrowdProcessEngine | CrowdRayEngine = (
            CrowdRayEngine(recording, load.chunk_seconds)
            if over_ray
            else CrowdProcessEngine(recording, load.chunk_seconds, Path(folder) / "crowd.npz")
        )
        stack.enter_context(closing(engine)).start()
        run_dir = RunDir.create(Path(folder) / "run", prepared.config, prepared.spec)
        stack.enter_context(closing(run_dir))
        newest = NewestSnapshot()
        server = stack.enter_context(closing(MetricsServer("127.0.0.1", 0, newest, {"run": "scale"})))
        watch = Watch(server.url, engine.crowd_pid, seconds)
        began = time.monotonic()
        recorder = Recorder(run_dir, (newest, watch), began)
        config = prepared.config
        Lives(engine, config, prepared.spec, run_dir, recorder, 0.0, began, watch.stop).run(None, None)
        return summary(watch, engine.heard(), num_actors, config.pacing.samples_per_insert)


def summary(
    watch: Watch, heard: Mapping[str, np.ndarray], num_actors: int, samples_per_insert: float
) -> dict[str, float]:
    """Name -> number, of the time between the two moments. heard: what the crowd has noted."""
    first, last = watch.moments
    seconds = last.at - first.at
    assert watch.last is not None

    def within(name: str) -> np.ndarray:
        times = heard[name][:, 0]
        return heard[name][(times >= first.at) & (times < last.at)]

    cores = {role: (last.busy[role] - first.busy[role]) / seconds for role in last.busy}
    waits, idle, late = within("credits")[:, 1], *within("ends")[:, 1:].T
    chunks = len(idle)
    return {
        **cores,
        "chunks/s": chunks / seconds,
        "coordinator us/chunk": 1e6 * cores["coordinator"] * seconds / chunks,
        "coordinator us/actor/s": 1e6 * cores["coordinator"] / num_actors,
        "shard insert us/block": 1e6 * (last.shard_seconds - first.shard_seconds) / chunks,
        "shard us/block": 1e6 * cores["shards"] * seconds / chunks,
        "credit ms p50": 1e3 * float(np.percentile(waits, 50)),
        "credit ms p99": 1e3 * float(np.percentile(waits, 99)),
        "idle ms p99": 1e3 * float(np.percentile(idle, 99)),
        "crowd late ms p99": 1e3 * float(np.percentile(late, 99)),
        "weights s": spread_seconds(heard["versions"], num_actors, first.at, last.at),
        "scrape kB": watch.scrape_bytes / 1e3,
        "scrape ms": 1e3 * watch.scrape_seconds,
        "up s": watch.up_seconds,
        "pacing %": 100.0 * ((watch.last.samples_per_insert or 0.0) / samples_per_insert - 1.0),
        "window %": 100.0
        * ((last.sampled - first.sampled) / (last.inserted - first.inserted) / samples_per_insert - 1.0),
    }


def spread_seconds(arrivals: np.ndarray, num_actors: int, begin: float, end: float) -> float:
    """Median seconds from the first actor that gets a version until every actor has it or a newer one.

    arrivals: [N, 3], time, actor, version. begin, end: when the versions count; NaN if none reached all.
    """
    by_actor = [arrivals[arrivals[:, 1] == actor] for actor in np.unique(arrivals[:, 1])]
    if len(by_actor) < num_actors:
        return float("nan")
    versions = np.unique(arrivals[(arrivals[:, 0] >= begin) & (arrivals[:, 0] < end), 2])
    found = []
    for version in versions[:: max(1, len(versions) // _VERSIONS)]:
        times = [had[had[:, 2] >= version, 0] for had in by_actor]
        if all(map(len, times)):
            reached = [each[0] for each in times]
            found.append(max(reached) - min(reached))
    return float(np.median(found)) if found else float("nan")


_COLUMNS = (
    ("coordinator", "{:.2f}"),
    ("shards", "{:.2f}"),
    ("learner", "{:.2f}"),
    ("crowd", "{:.2f}"),
    ("Ray's servers", "{:.2f}"),
    ("machine", "{:.2f}"),
    ("chunks/s", "{:.1f}"),
    ("coordinator us/chunk", "{:.0f}"),
    ("coordinator us/actor/s", "{:.0f}"),
    ("shard us/block", "{:.0f}"),
    ("shard insert us/block", "{:.0f}"),
    ("credit ms p50", "{:.2f}"),
    ("credit ms p99", "{:.2f}"),
    ("idle ms p99", "{:.2f}"),
    ("crowd late ms p99", "{:.1f}"),
    ("weights s", "{:.2f}"),
    ("scrape kB", "{:.1f}"),
    ("scrape ms", "{:.1f}"),
    ("up s", "{:.1f}"),
    ("pacing %", "{:+.1f}"),
    ("window %", "{:+.1f}"),
)


def table(points: Sequence[tuple[str, int, Mapping[str, float]]]) -> str:
    """A table in Markdown, a line for each number: loads and numbers of actors are the columns."""
    heads = [f"{load} {actors:,}" for load, actors, _ in points]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(points) + 1) + "|"]
    for name, form in _COLUMNS:
        lines.append(
            f"| {name} | " + " | ".join(form.format(found.get(name, 0.0)) for *_, found in points) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loads", nargs="*", choices=[*LOADS, []], default=list(LOADS))
    parser.add_argument("--actors", type=int, nargs="+", default=ACTORS)
    parser.add_argument("--seconds", type=float, help="how long to measure each")
    parser.add_argument("--engine", choices=("processes", "Ray"), default="processes")
    parser.add_argument("--point", action="store_true", help="measure the one load here, and print JSON")
    options = parser.parse_args()
    if options.point:
        load = LOADS[options.loads[0]]
        seconds = options.seconds or load.seconds
        print(json.dumps(measure(load, options.actors[0], seconds, over_ray=options.engine == "Ray")))
        return
    print(processor(), flush=True)
    points = []
    for name in options.loads:
        for num_actors in options.actors:
            command = [sys.executable, "-m", "benchmarks.scale", name, "--point", "--actors", str(num_actors)]
            command += ["--engine", options.engine]
            command += ["--seconds", str(options.seconds)] if options.seconds else []
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            points.append((name, num_actors, found))
            print(name, num_actors, {key: round(value, 3) for key, value in found.items()}, file=sys.stderr)
    print(table(points))


if __name__ == "__main__":
    main()
