"""Real actors whose environments wait: what more of them bring, and how many of them one machine starts.

Run as `python -m benchmarks.sleeping_actors curve|task|scores|fleet …`. An environment that sleeps stands for
one that waits for a simulator elsewhere, so that two cores carry many actors.

- curve: env steps per second of 1, 2, 4, … actors whose step takes 5 ms, and processors kept busy by role.
  The first line that falls behind one actor times their number shows the limit, its fullest column the cause.
- task: CartPole whose step takes 2 ms in training and no time in evaluation, at the same samples per insert:
  seconds until a version was published that has confirmed a return of 300, by 1 and by 8 actors, from the
  first env step on.
- scores: the same task's best return after the same number of env steps, by more and more actors over the
  same capacity of replay.
- fleet: 64 actor processes are started, and 7 MB of weights sent to 64 processes.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

from benchmarks.processor import processor
from benchmarks.quiet_run import quiet_run
from benchmarks.slow_steps import STEP_SECONDS, WEIGHTS_SIZES, Loader
from cluster.api import train
from cluster.engines.engine import Need
from cluster.engines.process_engine import ProcessEngine
from cluster.metrics.snapshot import Snapshot
from cluster.record.events import Event
from cluster.record.line_file import read_objects
from cluster.runtime.credits import as_argument
from cluster.runtime.preload import fork_servers
from cluster.settings.load_config import load_config

ACTORS = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 12.0
TASK_RETURN = 300
FLEET = 64
_ROLES = {"qf shard": "shard", "qf learner": "learner", "qf actor": "actors"}
_ENDLESS = (
    "run.runtime=local",
    "replay.persist=none",
    "evaluation.every_updates=1000000000",
    "stop.env_steps=1000000000",
    "stop.target_return=1000000",
)


@dataclass(frozen=True)
class Moment:
    """Totals of a run at a time; busy: seconds of processor by role so far."""

    at: float
    env_steps: int
    updates: int
    busy: dict[str, float]


@dataclass
class Watch:
    """A view that keeps totals and CPU time; it ends the run `seconds` after its first steps."""

    seconds: float
    moments: list[Moment] = field(default_factory=list)
    up_seconds: float = 0.0
    last: Snapshot | None = None
    ended: bool = False

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        if event.text.startswith("all roles are up"):
            self.up_seconds = event.run_seconds

    def metrics(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        if snapshot.env_steps_total > 0 and self.up_seconds:
            totals = snapshot.env_steps_total, snapshot.updates_total
            self.moments.append(Moment(time.monotonic(), *totals, _busy()))
            if not self.ended and self.moments[-1].at - self.moments[0].at >= self.seconds:
                self.ended = True
                signal.raise_signal(signal.SIGINT)


def _busy() -> dict[str, float]:
    me = psutil.Process()
    seconds = {"coordinator": sum(me.cpu_times()[:2])}
    for process in me.children(recursive=True):
        try:
            name, times = process.name(), process.cpu_times()
        except psutil.Error:
            continue
        for start, role in _ROLES.items():
            if name.startswith(start):
                seconds[role] = seconds.get(role, 0.0) + times.user + times.system
    return seconds


def watched(num_actors: int, seconds: float, *overrides: str) -> Watch:
    """A local run with the environment Sleeper."""
    settings = [
        *_ENDLESS,
        "env.id=benchmarks.slow_steps:Sleeper",
        "env.backend=sync",
        f"actors.num_actors={num_actors}",
        "actors.envs_per_actor=1",
        "actors.steps_per_chunk=100",
        "learner.hidden_sizes=[64]",
        "learner.batch_size=64",
        "pacing.samples_per_insert=1",
        *overrides,
    ]
    watch = Watch(seconds)
    with tempfile.TemporaryDirectory() as folder:
        train(load_config(None, settings), Path(folder) / "run", view=lambda *_: watch)
    return watch


def second_half(watch: Watch, seconds: float) -> tuple[Moment, Moment]:
    """The moments between which rates are measured: the last half of `seconds`."""
    # The last snapshot is from the end, when roles are idle.
    moments = [each for each in watch.moments[:-1] if each.at > watch.moments[-2].at - seconds / 2]
    return moments[0], moments[-1]


def curve() -> None:
    """Prints rates and busy processors by role over the second half of SECONDS."""
    print(f"one environment an actor, {STEP_SECONDS * 1000:g} ms a step; processors kept busy by role")
    roles = ("coordinator", "shard", "learner", "actors")
    print("| actors | env steps/s | of ideal | updates/s | " + " | ".join(roles) + " |")
    print("|---" * (4 + len(roles)) + "|")
    one = None
    for num_actors in ACTORS:
        watch = watched(num_actors, SECONDS)
        first, last = second_half(watch, SECONDS)
        seconds = last.at - first.at
        rate = (last.env_steps - first.env_steps) / seconds
        one = one or rate
        cores = [(last.busy.get(role, 0.0) - first.busy.get(role, 0.0)) / seconds for role in roles]
        line = [f"{num_actors}", f"{rate:,.0f}", f"{rate / (one * num_actors):.2f}"]
        line += [f"{(last.updates - first.updates) / seconds:,.0f}", *(f"{each:.2f}" for each in cores)]
        print("| " + " | ".join(line) + " |", flush=True)


@dataclass(frozen=True)
class Solved:
    """A run of the task. seconds: from the first env step until the confirmed version was published."""

    seconds: float
    env_steps_per_second: float
    solved: bool
    best_return: float


def _task(num_actors: int, seed: int, *overrides: str) -> Solved:
    settings = [
        "env.id=benchmarks.slow_steps:SlowCartPole",
        "env.backend=sync",
        "run.runtime=local",
        f"run.seed={seed}",
        f"actors.num_actors={num_actors}",
        "actors.envs_per_actor=8",
        "metrics.every_seconds=0.2",
        "replay.persist=none",
        f"stop.target_return={TASK_RETURN}",
        *overrides,
    ]
    with tempfile.TemporaryDirectory() as folder:
        result = quiet_run(load_config(Path("configs/cartpole.yaml"), settings), Path(folder) / "run")
        lines = read_objects(Path(folder) / "run" / "metrics.jsonl")
    outcome = result.outcome
    version = outcome.best_version or 0
    at = next(line for line in lines if line["weights_version"] >= version)
    rate = at["env_steps_total"] / at["acting_seconds"]
    return Solved(at["acting_seconds"], rate, outcome.solved, outcome.best_return_mean or 0.0)


def task(seeds: Sequence[int], actors: Sequence[int]) -> None:
    """Prints the runs, and the medians by number of actors with their ratios to the first number."""
    found: dict[int, list[Solved]] = {num_actors: [] for num_actors in actors}
    for seed in seeds:
        for num_actors, runs in found.items():
            runs.append(_task(num_actors, seed))
            print(f"{num_actors} actors, seed {seed}: {runs[-1]}", flush=True)
    one: tuple[float, float] | None = None
    for num_actors, runs in found.items():
        rate = statistics.median(run.env_steps_per_second for run in runs)
        seconds = statistics.median(run.seconds for run in runs)
        one = one or (rate, seconds)
        print(
            f"{num_actors} actors: {rate:,.0f} env steps/s ({rate / one[0]:.2f} times); confirmed version "
            f"after {seconds:.1f} s ({one[1] / seconds:.2f} times faster)"
        )


def scores(seeds: Sequence[int]) -> None:
    """Prints the best return after equal env steps, by number of actors; nothing sleeps."""
    print("| actors | transitions a lane | best return of each seed | median |")
    print("|---|---|---|---|")
    settings = ("env.id=CartPole-v1", "env.backend=auto", "stop.env_steps=100000", "stop.target_return=1000")
    for num_actors in (1, 2, 4, 8, 16):
        returns = sorted(_task(num_actors, seed, *settings).best_return for seed in seeds)
        text = ", ".join(f"{each:.0f}" for each in returns)
        lane = 10_000 / (8 * num_actors)
        print(f"| {num_actors} | {lane:,.0f} | {text} | {statistics.median(returns):.0f} |", flush=True)


def broadcast() -> list[float]:
    """Seconds until FLEET processes have loaded 7 MB of weights, several times."""
    num_weights = sum(inputs * outputs + outputs for inputs, outputs in pairwise(WEIGHTS_SIZES))
    seconds = []
    with closing(ProcessEngine(fork_servers())) as engine:
        engine.start()
        roles = [engine.spawn(f"loader {index}", Loader, need=Need(cpus=0.0)) for index in range(FLEET)]
        for version in range(6):
            weights = np.full(num_weights, version, np.float32)
            began = time.perf_counter()
            ref = engine.put(weights)
            for call in [engine.call(role, Loader.load, as_argument(ref))[0] for role in roles]:
                engine.get(call)
            seconds.append(time.perf_counter() - began)
    return seconds[1:]  # the first one has waited for the processes to come up


def fleet() -> None:
    """Prints the start of a fleet of FLEET light actor processes, and the broadcast."""
    watch = watched(FLEET, 8.0, "actors.steps_per_chunk=20")
    assert watch.last is not None
    print(
        f"{FLEET} actors: all roles up after {watch.up_seconds:.1f} s, "
        f"{watch.last.restarts_total} replaced, {watch.last.env_steps_total:,} env steps"
    )
    text = ", ".join(f"{each:.2f}" for each in broadcast())
    print(f"7 MB of weights loaded by {FLEET} processes after {text} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=["curve", "task", "scores", "fleet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 8], help="of the task")
    options = parser.parse_args()
    print(processor(), flush=True)
    for what in options.what:
        if what == "curve":
            curve()
        elif what == "task":
            task(options.seeds, options.actors)
        elif what == "scores":
            scores(options.seeds)
        else:
            fleet()


if __name__ == "__main__":
    main()
