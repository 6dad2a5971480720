"""The export to Prometheus: names, types and labels of metrics, and the server."""

from __future__ import annotations

import dataclasses
import re
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from qfleet_processes import set_flags
from qfleet_serial import SMALL
from qfleet_snapshots import FULL

from cluster.cli import EXIT_BAD_INPUT, EXIT_OK, run
from cluster.metrics.snapshot import Snapshot
from cluster.record.prometheus import MetricsServer, SnapshotCollector
from cluster.record.run_dir import read_config
from replay_service.histogram import BOUNDS

RUN = {"run": "cartpole-1", "env": "CartPole-v1"}


def exposition(snapshot: Snapshot | None) -> str:
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: snapshot, RUN))
    return generate_latest(registry).decode()


def test_every_metric_is_exported_with_its_type_labels_and_help() -> None:
    info, *families = text_string_to_metric_families(exposition(FULL))
    assert [(sample.name, sample.labels) for sample in info.samples] == [("qfleet_run_info", RUN)]
    counted = [item for item in dataclasses.fields(Snapshot) if item.metadata["kind"] != "text"]
    for family, item in zip(families, counted, strict=True):
        name = f"qfleet_{item.name}"
        assert re.fullmatch(r"qfleet_[a-z0-9_]+", name)
        assert family.type == item.metadata["kind"]
        assert family.documentation == item.metadata["help"]
        # Prometheus's own rule: totals are counters, everything else is not.
        assert (family.type == "counter") == name.endswith("_total"), name
        if family.type == "histogram":
            continue
        assert {sample.name for sample in family.samples} == {name}
        labels = item.metadata["labels"]
        assert len(family.samples) == 2 ** len(labels)
        assert all(set(sample.labels) == set(labels) for sample in family.samples)
        assert {sample.value for sample in family.samples} == {values_of(getattr(FULL, item.name))}


def values_of(value: Any) -> float:
    """The one number of a metric whose labels all have the same."""
    while isinstance(value, dict):
        value = next(iter(value.values()))
    return float(value)


def test_a_histogram_has_cumulative_buckets_a_sum_and_a_count() -> None:
    families = {family.name: family for family in text_string_to_metric_families(exposition(FULL))}
    samples = families["qfleet_sample_policy_lag_updates"].samples
    buckets = [(s.labels["le"], s.value) for s in samples if s.name.endswith("_bucket")]
    assert buckets[:4] == [("0.0", 0.0), ("1.0", 1.0), ("2.0", 3.0), ("4.0", 6.0)]
    total = sum(range(len(BOUNDS) + 1))
    assert buckets[-1] == ("+Inf", total)
    number = [item.name for item in dataclasses.fields(Snapshot)].index("sample_policy_lag_updates") + 1.5
    assert {s.name[-6:]: s.value for s in samples if "le" not in s.labels} == {
        "_count": total,
        "es_sum": number,
    }


def test_a_metric_that_is_not_known_yet_is_not_exported() -> None:
    text = exposition(Snapshot())
    assert "qfleet_updates_total 0.0" in text
    for name in ("loss", "epsilon", "best_return_mean", "policy_lag_updates"):
        assert f"qfleet_{name}" not in text


def test_the_server_shows_the_newest_snapshot_and_nothing_before_the_first() -> None:
    newest: list[Snapshot] = []
    server = MetricsServer("127.0.0.1", 0, lambda: newest[-1] if newest else None, RUN)

    def scraped() -> str:
        with urllib.request.urlopen(server.url, timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    try:
        assert set(re.findall(r"^qfleet_\w+", scraped(), re.MULTILINE)) == {"qfleet_run_info"}
        assert server.target == server.url.split("/")[2]
        newest.append(replace(FULL, updates_total=41))
        assert "qfleet_updates_total 41.0" in scraped()
        newest.append(replace(FULL, updates_total=42))
        assert "qfleet_updates_total 42.0" in scraped()
    finally:
        server.close()
    with pytest.raises(OSError, match=r"refused|reset"):
        scraped()


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("nonsense", "--metrics-addr is nonsense; give HOST:PORT"),
        (":9401", "--metrics-addr is :9401; give HOST:PORT"),
        ("127.0.0.1:http", "--metrics-addr is 127.0.0.1:http; give HOST:PORT"),
        ("::1:9401", "--metrics-addr is ::1:9401; give HOST:PORT, for instance 127.0.0.1:9401 or [::1]:9401"),
        ("[::1]", "--metrics-addr is [::1]; give HOST:PORT"),
        ("[127.0.0.1:9401", "--metrics-addr is [127.0.0.1:9401; give HOST:PORT"),
        ("[2001:db8::1]:0", "metrics.host is 2001:db8::1 and metrics.port 0"),
        ("127.0.0.1:65536", "metrics.port is 65536; give 0 (a free port) to 65535"),
        ("192.0.2.1:0", "metrics.host is 192.0.2.1 and metrics.port 0"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(
    address: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--runtime", "serial", "--metrics-addr", address, "--run-dir", str(tmp_path / "run")]
    assert run(["train", "CartPole-v1", *arguments]) == EXIT_BAD_INPUT
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as own:
            own.bind(("::1", 0))
    except OSError:
        return False
    return True


NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")


@NEEDS_IPV6
@pytest.mark.parametrize(("host", "target"), [("::1", "[::1]"), ("::", "[::1]")])
def test_an_ipv6_address_is_served_in_brackets(host: str, target: str) -> None:
    server = MetricsServer(host, 0, lambda: FULL, RUN)
    try:
        port = server.url.split("/")[2].rpartition(":")[2]
        assert server.url == f"http://[{host}]:{port}/metrics"
        assert server.target == f"{target}:{port}"
        with urllib.request.urlopen(f"http://{server.target}/metrics") as answer:
            assert b"qfleet_updates_total" in answer.read()
    finally:
        server.close()


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), pytest.param("::1", "[::1]", marks=NEEDS_IPV6)]
)
def test_the_address_given_is_the_address_served(
    host: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    small = set_flags(SMALL)
    arguments = ["--metrics-addr", f"{shown}:{port}", "--run-dir", str(tmp_path / "run")]
    assert run(["train", "CartPole-v1", *small, "--set", "stop.updates=16", *arguments]) == EXIT_OK
    assert f"http://{shown}:{port}/metrics" in capsys.readouterr().out
    saved = read_config(tmp_path / "run")
    assert (saved.metrics.host, saved.metrics.port) == (host, port)
