"""The cost of metrics for each role: CPU seconds spent on metrics over the CPU seconds that the role works.

Run as `python -m benchmarks.metrics_cost`. A serial run of CartPole times every function that only metrics
need. Its network and environments are about the cheapest there are, so metrics have their largest share. The
cost of the timing itself is subtracted. A local run then tells how often these functions run there, and how
many CPU seconds each role's process uses from the first updates on. The coordinator is timed in the local
run, with a scrape every 15 seconds.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from unittest import mock

import prometheus_client

from benchmarks.processor import processor
from cluster.engines.threads import SINGLE_THREADED

os.environ.update(SINGLE_THREADED)  # read by numpy when it loads, as in a real run

import actors.rollout
import cluster.record.prometheus
import learner.loop
from actors.episodes import EpisodeLedger
from actors.evaluation import Evaluator
from actors.rollout import EnvActor
from cluster.api import train
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.metrics.counters import Counters
from cluster.metrics.snapshot import Snapshot
from cluster.record.run_dir import RunDir, read_config
from cluster.settings.config import RunConfig
from cluster.settings.load_config import load_config
from cluster.settings.resolved import ResolvedStop
from cluster.show.view import Headline, LineView
from learner.loop import Learner
from learner.update_metrics import UpdateMeter
from replay_service.sampler import ReplaySampler
from replay_service.shard import ReplayShard
from replay_service.shard_meter import ShardMeter

UPDATES = {"serial": 4_000, "local": 40_000}
SCRAPE_SECONDS = 15.0
_CALIBRATIONS = 20_000


class Stopwatch:
    """CPU seconds by label while functions are patched; a label excludes what is timed within it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._state = threading.local()
        self._inside = self._outside = 0.0
        empty = self.timed("inside", lambda: None)
        around = self.timed("outside", lambda: [empty() for _ in range(_CALIBRATIONS)])
        around()
        # The cost of timing, within the timed call and for its caller.
        self._inside = self.seconds["inside"] / _CALIBRATIONS
        self._outside = self.seconds["outside"] / _CALIBRATIONS
        self.seconds.clear()

    @contextmanager
    def timing(self, label: str, owner: Any, *names: str) -> Iterator[None]:
        """Within the block, these functions of a class or module count for the label."""
        with ExitStack() as stack:
            for name in names:
                timed = self.timed(label, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
            yield

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Times the function under the label; calls within a function of the same label are part of it."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            state = self._state.__dict__
            caller = state.get("label")
            if caller == label:
                return function(*args, **kwargs)
            now = time.thread_time()
            if caller is not None:
                self.seconds[caller] += now - state["since"] - self._outside
            state["label"], state["since"] = label, now
            try:
                return function(*args, **kwargs)
            finally:
                now = time.thread_time()
                self.seconds[label] += now - state["since"] - self._inside
                state["label"], state["since"] = caller, now

        return timed


class Quiet(LineView):
    """A view that shows nothing and keeps the address of the metrics."""

    def __init__(self, headline: Headline, stop: ResolvedStop) -> None:
        super().__init__(headline, stop, io.StringIO())
        self.url = headline.metrics_url


@dataclass(frozen=True)
class Events:
    """Env steps, updates, sample requests and evaluations so far, and CPU seconds, by role."""

    counts: Mapping[str, float]
    cpu_seconds: Mapping[str, float]

    def since(self, earlier: Events) -> Events:
        """The events since an earlier moment."""
        return Events(
            *(
                {role: value - before.get(role, 0.0) for role, value in now.items()}
                for now, before in ((self.counts, earlier.counts), (self.cpu_seconds, earlier.cpu_seconds))
            )
        )


def events(snapshot: Snapshot, config: RunConfig) -> Events:
    """The events until a snapshot."""
    request_transitions = config.learner.batch_size * (config.replay.minibatches_per_request or 1)
    return Events(
        {
            "actor": snapshot.env_steps_total,
            "learner": snapshot.updates_total,
            "shard": (snapshot.drawn_transitions_total or 0) / request_transitions,
            "evaluator": snapshot.evaluations_total or 0,
        },
        snapshot.process_cpu_seconds_total or {},
    )


@dataclass(frozen=True)
class Cost:
    """Metrics' share of a role's work in a serial run, and their seconds per event."""

    share: float
    seconds: float


def serial_costs() -> dict[str, Cost]:
    """Role -> cost."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for label, owner, names in (
            ("actor", EnvActor, ("rollout",)),
            ("actor metrics", EpisodeLedger, ("add", "take_ended")),
            ("actor metrics", EnvActor, ("_start_values",)),
            ("actor metrics", actors.rollout, ("_summary",)),
            ("shard", ReplayShard, ("insert", "exchange", "status")),
            ("shard metrics", ShardMeter, ("drawn", "read")),
            ("learner", Learner, ("learn",)),
            ("learner", ReplaySampler, ("next_minibatch", "give_back")),
            # Not UpdateMeter.add and PhaseTimer.enter: of their 0.3 us, timing would make ten times as much.
            ("learner metrics", UpdateMeter, ("_sum_up", "take")),
            ("learner metrics", learner.loop, ("histogram_of",)),
            ("evaluator", Evaluator, ("evaluate",)),
            ("evaluator metrics", Evaluator, ("_sums",)),
        ):
            stack.enter_context(watch.timing(label, owner, *names))
        run_dir = Path(folder) / "run"
        result = train(_config("serial"), run_dir, view=Quiet)
        happened = events(result.outcome.final, read_config(run_dir)).counts
    seconds = watch.seconds
    return {
        role: Cost(
            seconds[f"{role} metrics"] / (seconds[role] + seconds[f"{role} metrics"]),
            seconds[f"{role} metrics"] / happened[role],
        )
        for role in happened
    }


class Scraped(Quiet):
    """Scrapes the run, and keeps the first snapshot after learning began."""

    def __init__(self, headline: Headline, stop: ResolvedStop) -> None:
        super().__init__(headline, stop)
        self.first: Snapshot | None = None
        self.cpu_seconds = 0.0
        self._done = threading.Event()

    def metrics(self, snapshot: Snapshot) -> None:
        if self.first is None and "learner" in (snapshot.process_cpu_seconds_total or {}):
            self.first, self.cpu_seconds = snapshot, time.process_time()

    def __enter__(self) -> Self:
        threading.Thread(target=self._scrape, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _scrape(self) -> None:
        while not self._done.wait(SCRAPE_SECONDS):
            urllib.request.urlopen(self.url, timeout=5).read()


def local_shares(costs: Mapping[str, Cost]) -> dict[str, float]:
    """Role -> metrics' share of its process's CPU seconds; "scrapes": their share of the coordinator's."""
    watch = Stopwatch()
    views: list[Scraped] = []

    def view(headline: Headline, stop: ResolvedStop) -> Scraped:
        views.append(Scraped(headline, stop))
        return views[0]

    make_app = prometheus_client.make_wsgi_app
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for owner, names in (
            (Counters, ("take_rollout", "take_learning", "take_evaluation", "take_wait", "snapshot")),
            (Diagnosis, ("take",)),
            (RunDir, ("write_snapshot",)),
        ):
            stack.enter_context(watch.timing("coordinator", owner, *names))
        timed_app = mock.patch.object(
            cluster.record.prometheus,
            "make_wsgi_app",
            lambda *a, **k: watch.timed("scrapes", make_app(*a, **k)),
        )
        stack.enter_context(timed_app)
        run_dir = Path(folder) / "run"
        result = train(_config("local"), run_dir, view=view)
        used = time.process_time() - views[0].cpu_seconds
        config = read_config(run_dir)
    assert views[0].first is not None
    local = events(result.outcome.final, config).since(events(views[0].first, config))
    shares = {
        role: cost.seconds * local.counts[role] / local.cpu_seconds[role] for role, cost in costs.items()
    }
    return {**shares, **{label: seconds / used for label, seconds in watch.seconds.items()}}


def _config(runtime: str) -> RunConfig:
    stop = (f"stop.updates={UPDATES[runtime]}", "stop.target_return=1000000000")
    return load_config("CartPole-v1", [f"run.runtime={runtime}", *stop])


def main() -> None:
    print(processor(), flush=True)
    costs = serial_costs()
    print(f"metrics, as a share of {'the work, serial run':>24s} {'the process, local run':>24s}")
    for role, share in local_shares(costs).items():
        serial = f"{costs[role].share:.2%}" if role in costs else ""
        print(f"{role:22s} {serial:>24s} {share:24.2%}")


if __name__ == "__main__":
    main()
