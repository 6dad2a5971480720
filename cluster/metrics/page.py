"""The page of all metrics, docs/metrics.md.

Owns its layout; names, kinds and meanings are those of the snapshot. Must not import torch or ray.
"""

import dataclasses

from cluster.metrics.snapshot import Snapshot


def page() -> str:
    """The text of docs/metrics.md: a line for each metric of metrics.jsonl, /status and /metrics."""
    lines = [
        "# Metrics",
        "",
        "`python -m cluster.metrics.page` writes this page. A line of `metrics.jsonl` and the answer of",
        "`/status` hold all that are known at that moment, under these names; Prometheus gets those that are",
        "no texts from `/metrics`, with the prefix `qfleet_`; trackers get them as `group/metric`. A metric",
        "with labels maps their values to numbers.",
        "",
        "| metric | group | kind | labels | meaning |",
        "|---|---|---|---|---|",
    ]
    for item in dataclasses.fields(Snapshot):
        labels = ", ".join(f"`{label}`" for label in item.metadata["labels"])
        group, kind, text = (item.metadata[key] for key in ("group", "kind", "help"))
        lines.append(f"| `{item.name}` | {group} | {kind} | {labels} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
