"""Old names of what runs wrote to disk, and today's: the one table by which run folders of 6afb764 are read.

Owns the table and its application; must not import anything of the project.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

SETTINGS = {
    "learner.optimiser": "learner.optimizer",
    "learner.normalise_observations": "learner.normalize_observations",
}
"""Full name of a setting -> today's."""

VALUES = {("replay.sampling", "prioritised"): "prioritized"}
"""(Full name of a setting, its value) -> today's value."""

METRICS = {
    "unconfirmed_transitions": "unacknowledged_transitions",
    "evaluation_cut_discount_mean": "evaluation_truncation_discount_mean",
}
"""Name of a metric in metrics.jsonl and /status -> today's."""

MANIFEST = {"figures": "counters", "judge": "selection", "sampled_rows": "sampled_transitions"}
"""Key in a checkpoint's manifest, at any depth -> today's."""

RESUMES = {"cut": "checkpoint"}
"""Key in a line of resumes.jsonl -> today's."""

CHECKPOINT_PREFIXES = ("checkpoint-", "cut-")
"""How names of checkpoint folders begin: today's first."""

EVENT_PREFIXES: dict[str, Literal["failed", "warning", "ended"]] = {
    "failed: ": "failed",
    "warning: ": "warning",
    "end: ": "ended",
}
"""How the text of an event began -> the kind of event that says so today."""


def renamed(names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` under today's names."""
    return {names.get(name, name): value for name, value in values.items()}


def renamed_manifest(manifest: Any) -> Any:
    """A manifest, as JSON gives it, under today's names."""
    if isinstance(manifest, dict):
        return {name: renamed_manifest(value) for name, value in renamed(MANIFEST, manifest).items()}
    return manifest


def rename_settings(tree: dict[str, Any]) -> None:
    """Puts today's names and values into a tree of sections, in place."""
    for old, new in SETTINGS.items():
        (section, name), (_, today) = old.split("."), new.split(".")
        settings = tree.get(section)
        if isinstance(settings, dict) and name in settings:
            tree[section] = renamed({name: today}, settings)
    for (path, old_value), value in VALUES.items():
        section, name = path.split(".")
        settings = tree.get(section)
        if isinstance(settings, dict) and settings.get(name) == old_value:
            settings[name] = value
