"""docs/metrics.md has a line for every metric, and is as the code writes it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from cluster.metrics.page import page
from cluster.metrics.snapshot import Snapshot

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_metric_has_its_line() -> None:
    named = [line.split("`")[1] for line in page().splitlines() if line.startswith("| `")]
    assert named == [item.name for item in fields(Snapshot)]


def test_the_page_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == page(), (
        f"write it: python -m cluster.metrics.page > {DOCUMENT}"
    )
