"""A snapshot in which every metric is known."""

from __future__ import annotations

import dataclasses
from typing import Any

from cluster.metrics.snapshot import Finding, Snapshot, Verdict
from replay_service.histogram import BOUNDS, Histogram

VERDICT = Verdict("actor", "actors work 97% of the time")
FINDING = Finding("stale_data", 7, "transitions are old", "long chunks", "shorter ones")


def value_of(item: dataclasses.Field[Any], number: int) -> Any:
    """A value as the metric's kind and labels want it."""
    if item.metadata["kind"] == "text":
        return VERDICT if item.name == "verdict" else (FINDING,)
    if item.metadata["kind"] == "histogram":
        return Histogram(tuple(range(len(BOUNDS) + 1)), number + 0.5)
    value: Any = number + 0.5
    for label in reversed(item.metadata["labels"]):
        value = {f"{label}_a": value, f"{label}_b": value}
    return value


FULL = Snapshot(
    **{item.name: value_of(item, number) for number, item in enumerate(dataclasses.fields(Snapshot), start=1)}
)
"""Numbers are the positions of the fields, from 1.5 on; both values of each label have the same."""
