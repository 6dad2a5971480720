"""A snapshot of a run of which nothing is known yet, to be filled in by tests."""

from __future__ import annotations

from dataclasses import MISSING, fields

from cluster.metrics.snapshot import Snapshot

EMPTY = Snapshot(
    **{item.name: 0.0 if item.type == "float" else 0 for item in fields(Snapshot) if item.default is MISSING}
)
