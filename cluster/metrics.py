"""One immutable snapshot of a run's figures, and its export for Prometheus.

Owns names, units and help texts of the figures; must not import torch, ray or gymnasium.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Literal
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from cluster.config import ConfigError

Kind = Literal["counter", "gauge"]


def _figure(kind: Kind, text: str) -> Any:
    return field(metadata={"kind": kind, "help": text})


@dataclass(frozen=True)
class Snapshot:
    """The figures of a run at one moment. None: not known yet. Field names are the exported names."""

    run_seconds: float = _figure("gauge", "Seconds since the run began")
    env_steps_total: int = _figure("counter", "Environment steps stored by the shards")
    episodes_total: int = _figure("counter", "Training episodes ended")
    inserted_transitions_total: int = _figure("counter", "Transitions inserted into replay")
    sampled_transitions_total: int = _figure("counter", "Transitions consumed by the learner")
    updates_total: int = _figure("counter", "Optimiser steps")
    skipped_updates_total: int = _figure("counter", "Updates left out: loss or gradient was not finite")
    restarts_total: int = _figure("counter", "Dead actors, shards and evaluators replaced")
    env_steps_per_second: float = _figure("gauge", "Environment steps a second, over the last interval")
    updates_per_second: float = _figure("gauge", "Optimiser steps a second, over the last interval")
    samples_per_insert: float = _figure("gauge", "Sampled over inserted transitions since learning started")
    samples_per_insert_target: float = _figure("gauge", "The ratio that pacing keeps")
    epsilon: float | None = _figure("gauge", "Exploration rate of the newest rollout")
    train_return_mean: float | None = _figure("gauge", "Mean return of the last 100 training episodes")
    train_length_mean: float | None = _figure("gauge", "Mean length of the last 100 training episodes")
    evaluation_return_mean: float | None = _figure("gauge", "Mean greedy return of the newest evaluation")
    best_return_mean: float | None = _figure("gauge", "Confirmed mean greedy return of the best version")
    loss: float | None = _figure("gauge", "Mean loss of the newest learning chunk")
    q_mean: float | None = _figure("gauge", "Mean Q-value of the actions taken, newest learning chunk")
    td_error_mean: float | None = _figure("gauge", "Mean absolute TD error, newest learning chunk")
    grad_norm_mean: float | None = _figure("gauge", "Mean gradient norm before clipping, newest chunk")
    grad_norm_clipped_mean: float | None = _figure("gauge", "The same after clipping")
    target_gap: float | None = _figure(
        "gauge", "Mean difference of online and target weights, before the newest copy"
    )
    learning_rate: float | None = _figure("gauge", "Learning rate of the newest update")
    policy_lag_updates: int | None = _figure(
        "gauge", "Learner version less the newest rollout's acting version"
    )
    sample_age_updates: float | None = _figure("gauge", "The same lag, mean over the rows being sampled")
    learner_update_share: float = _figure("gauge", "Share of the last interval spent updating")
    learner_wait_share: float = _figure("gauge", "Share of the last interval the learner waited for data")
    actor_busy_share: float = _figure("gauge", "Share of the last interval that actors worked, mean")
    replay_transitions: int = _figure("gauge", "Transitions held in replay")
    replay_bytes: int = _figure("gauge", "Bytes held in replay")


def figures(snapshot: Snapshot) -> dict[str, float]:
    """Name -> value of what is known: one line of metrics.jsonl."""
    values = dataclasses.asdict(snapshot)
    return {name: value for name, value in values.items() if value is not None}


def bottleneck(snapshot: Snapshot) -> str:
    """The stage that bounds the run's speed, in one word."""
    if snapshot.updates_total == 0:
        return "actors"
    if snapshot.learner_update_share >= 0.6:
        return "learner"
    if snapshot.learner_wait_share >= 0.3:
        return "replay"
    return "actors" if snapshot.actor_busy_share >= 0.6 else "coordination"


class SnapshotCollector(Collector):
    """Turns the newest snapshot into metric families when Prometheus asks; holds no state of its own."""

    def __init__(self, newest: Callable[[], Snapshot | None]) -> None:
        self._newest = newest

    def collect(self) -> Iterator[Metric]:
        """One family for each known figure, prefixed qfleet_."""
        snapshot = self._newest()
        if snapshot is None:
            return
        known = figures(snapshot)
        for item in dataclasses.fields(Snapshot):
            if item.name in known:
                family = CounterMetricFamily if item.metadata["kind"] == "counter" else GaugeMetricFamily
                yield family(f"qfleet_{item.name}", item.metadata["help"], value=known[item.name])


class _SilentHandler(WSGIRequestHandler):
    """Writes no access log: the terminal belongs to the run."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class MetricsServer:
    """Serves /metrics on host:port from a thread; port 0 takes a free one.

    Raises ConfigError where the address is taken or not this machine's.
    """

    def __init__(self, host: str, port: int, newest: Callable[[], Snapshot | None]) -> None:
        registry = CollectorRegistry()
        registry.register(SnapshotCollector(newest))
        try:
            self._server = make_server(
                host, port, make_wsgi_app(registry), ThreadingWSGIServer, handler_class=_SilentHandler
            )
        except OSError as error:
            raise ConfigError(
                f"metrics.host is {host} and metrics.port {port}: {error.strerror}; "
                "give an address of this machine, and port 0 for a free one"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"
        # The poll interval is how long close() may wait.
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
