"""The newest snapshot served over HTTP: /metrics for Prometheus, /status as JSON.

Owns the export and the server; must not import torch, ray or gymnasium.
"""

import dataclasses
import math
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cluster.metrics.snapshot import ByLabel, ByLabels, Snapshot
from cluster.settings.config import ConfigError
from replay_service.histogram import BOUNDS, Histogram

_BUCKETS = tuple(map(floatToGoString, (*BOUNDS, math.inf)))
_FIELDS = {item.name: item.metadata for item in dataclasses.fields(Snapshot)}


class SnapshotCollector(Collector):
    """Converts the newest snapshot to metric families when Prometheus scrapes; holds no other state."""

    def __init__(self, newest: Callable[[], Snapshot | None], run: Mapping[str, str]) -> None:
        """run: the labels of qfleet_run_info, which identify the run."""
        self._newest = newest
        self._run = dict(run)

    def collect(self) -> Iterator[Metric]:
        """qfleet_run_info, and one family for each known metric, named after it with the prefix qfleet_."""
        yield InfoMetricFamily(
            "qfleet_run", "Name, environment, runtime and folder of the run", value=self._run
        )
        snapshot = self._newest()
        if snapshot is None:
            return
        for name, metadata in _FIELDS.items():
            value = getattr(snapshot, name)
            if value is not None and metadata["kind"] != "text":
                yield _family(f"qfleet_{name}", metadata, value)


def _family(name: str, metadata: Mapping[str, Any], value: float | ByLabel | ByLabels | Histogram) -> Metric:
    text, labels = metadata["help"], metadata["labels"]
    if isinstance(value, Histogram):
        buckets = list(zip(_BUCKETS, accumulate(value.counts), strict=True))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=value.sum)
    family = (CounterMetricFamily if metadata["kind"] == "counter" else GaugeMetricFamily)(
        name, text, labels=labels
    )
    for label_values, number in _samples(value):
        family.add_metric(label_values, number)
    return family


def _samples(value: float | ByLabel | ByLabels) -> Iterator[tuple[tuple[str, ...], float]]:
    """Label values and number of each sample."""
    if not isinstance(value, Mapping):
        yield (), value
        return
    for label, part in value.items():
        for rest, number in _samples(part):
            yield (label, *rest), number


class _SilentHandler(WSGIRequestHandler):
    """Writes no access log, which would disturb the output of the run."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _with_status(others: WSGIApplication, status: Callable[[], bytes]) -> WSGIApplication:
    """An application that answers /status itself and leaves everything else to `others`."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/status":
            return others(environ, start_response)
        document = status()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(document)))]
        start_response("200 OK", headers)
        return [document]

    return answer


class _IPv6Server(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class MetricsServer:
    """Serves /metrics, and the JSON of status() on /status, from a thread; port 0 takes a free one.

    Raises ConfigError if the address is taken or does not belong to this machine.
    """

    def __init__(
        self,
        host: str,
        port: int,
        newest: Callable[[], Snapshot | None],
        run: Mapping[str, str],
        status: Callable[[], bytes] = lambda: b"null",
    ) -> None:
        """run: the labels of qfleet_run_info."""
        registry = CollectorRegistry()
        registry.register(SnapshotCollector(newest, run))
        try:
            self._server = make_server(
                host,
                port,
                _with_status(make_wsgi_app(registry, disable_compression=True), status),
                _IPv6Server if ":" in host else ThreadingWSGIServer,
                handler_class=_SilentHandler,
            )
        except OSError as error:
            raise ConfigError(
                f"metrics.host is {host} and metrics.port {port}: {error.strerror}; "
                "give an address of this machine, and port 0 for a free one"
            ) from error
        in_url = f"[{host}]" if ":" in host else host
        self.url = f"http://{in_url}:{self._server.server_port}/metrics"
        # A server that listens on all addresses is scraped through the loopback interface.
        loopback = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
        self.target = f"{loopback.get(in_url, in_url)}:{self._server.server_port}"
        # close() may wait for as long as this poll interval.
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
