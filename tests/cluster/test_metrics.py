"""Figures: names and types as Prometheus reads them, and what bounds a run's speed."""

from __future__ import annotations

import dataclasses
import re
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import MetricsServer, Snapshot, SnapshotCollector, bottleneck, figures

NOTHING_YET = Snapshot(
    **{
        item.name: None if "None" in str(item.type) else 0.0 if item.type == "float" else 0
        for item in dataclasses.fields(Snapshot)
    }
)
FULL = Snapshot(
    **{item.name: number + 0.5 for number, item in enumerate(dataclasses.fields(Snapshot), start=1)}
)


def test_every_figure_is_exported_with_its_type_and_help() -> None:
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: FULL))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    exported = {sample.name: sample.value for family in families for sample in family.samples}
    assert exported == {f"qfleet_{name}": value for name, value in figures(FULL).items()}
    for family in families:
        (sample,) = family.samples
        assert re.fullmatch(r"qfleet_[a-z0-9_]+", sample.name)
        # Prometheus's own rule: totals are counters, everything else is not.
        assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
        assert family.type in ("counter", "gauge")
        assert family.documentation


def test_what_is_not_known_yet_is_left_out() -> None:
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: NOTHING_YET))
    text = generate_latest(registry).decode()
    assert "qfleet_updates_total 0.0" in text
    for name in ("loss", "epsilon", "best_return_mean", "policy_lag_updates"):
        assert f"qfleet_{name}" not in text
        assert name not in figures(NOTHING_YET)


def test_the_server_shows_the_newest_snapshot_and_nothing_before_the_first() -> None:
    newest: list[Snapshot] = []
    server = MetricsServer("127.0.0.1", 0, lambda: newest[-1] if newest else None)

    def scraped() -> str:
        with urllib.request.urlopen(server.url, timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    try:
        assert "qfleet_" not in scraped()
        newest.append(replace(FULL, updates_total=41))
        assert "qfleet_updates_total 41.0" in scraped()
        newest.append(replace(FULL, updates_total=42))
        assert "qfleet_updates_total 42.0" in scraped()
    finally:
        server.close()
    with pytest.raises(OSError, match=r"refused|reset"):
        scraped()


@pytest.mark.parametrize(
    ("updates", "update_share", "wait_share", "actor_share", "stage"),
    [
        (0, 0.9, 0.9, 0.0, "actors"),  # nothing learned yet: the replay is being filled
        (5, 0.6, 0.4, 1.0, "learner"),
        (5, 0.59, 0.3, 1.0, "replay"),
        (5, 0.59, 0.29, 0.6, "actors"),
        (5, 0.59, 0.29, 0.59, "coordination"),
    ],
)
def test_the_stage_that_bounds_the_speed(
    updates: int, update_share: float, wait_share: float, actor_share: float, stage: str
) -> None:
    snapshot = replace(
        FULL,
        updates_total=updates,
        learner_update_share=update_share,
        learner_wait_share=wait_share,
        actor_busy_share=actor_share,
    )
    assert bottleneck(snapshot) == stage
