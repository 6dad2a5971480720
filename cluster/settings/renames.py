"""Names that older runs wrote to disk, and their names today; meanings that they left out.

Owns these tables and their use; must not import anything of the project.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

SETTINGS = {
    "learner.optimiser": "learner.optimizer",
    "learner.normalise_observations": "learner.normalize_observations",
    "metrics.tensorboard": "metrics.trackers",
}
"""Setting, with its section -> today's name."""

VALUES: Mapping[tuple[str, str | bool], Any] = {
    ("replay.sampling", "prioritised"): "prioritized",
    ("metrics.trackers", True): ["tensorboard"],
    ("metrics.trackers", False): [],
}
"""(Setting, value) -> today's value."""

METRICS = {
    "unconfirmed_transitions": "unacknowledged_transitions",
    "evaluation_cut_discount_mean": "evaluation_truncation_discount_mean",
}
"""Metric in metrics.jsonl and /status -> today's name."""

MANIFEST = {"figures": "counters", "judge": "selection", "sampled_rows": "sampled_transitions"}
"""Key in a checkpoint's manifest, at any depth -> today's key."""

CHECKPOINT_PREFIXES = ("checkpoint-", "cut-")
"""Prefixes of the names of checkpoint folders: today's first."""

EVENT_PREFIXES: dict[str, Literal["failed", "warning", "ended"]] = {
    "failed: ": "failed",
    "warning: ": "warning",
    "end: ": "ended",
}
"""Prefix of an event's text -> the kind of event that replaces it today."""


def renamed(names: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping `values` under today's names."""
    return {names.get(name, name): value for name, value in values.items()}


def renamed_metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl or a /status answer under today's names, verdict and warnings as values.

    6afb764 wrote those as texts: "actor-bound: …" and "stale data: … Cause: … Cure: …".
    """
    today = renamed(METRICS, line)
    if isinstance(verdict := today.get("verdict"), str):
        stage, _, text = verdict.partition("-bound: ")
        today["verdict"] = {"stage": stage, "text": text}
    if isinstance(warnings := today.get("warnings"), list):
        today["warnings"] = [_finding(each) if isinstance(each, str) else each for each in warnings]
    return today


def _finding(text: str) -> dict[str, Any]:
    title, _, rest = text.partition(": ")
    evidence, _, rest = rest.partition(". Cause: ")
    cause, _, cure = rest.partition(". Cure: ")
    return {
        "name": title.replace(" ", "_").lower(),
        "since_updates": 0,
        "evidence": evidence,
        "cause": cause,
        "cure": cure,
    }


def renamed_manifest(manifest: Any) -> Any:
    """A checkpoint's manifest, parsed from JSON, under today's names."""
    if isinstance(manifest, dict):
        return {name: renamed_manifest(value) for name, value in renamed(MANIFEST, manifest).items()}
    return manifest


def with_meanings(environment: Mapping[str, Any]) -> dict[str, Any]:
    """A saved environment with "pixels" and "image_layouts", which runs up to 9fb8909 did not write.

    Their networks divided every array of bytes by 255, and read a frame of three axes as channels last where
    the last axis is at most as long as the first, else as channels first. Four axes were no image.
    """
    if "pixels" in environment:
        return dict(environment)
    alone = {
        "name": "observation",
        "dtype": environment["observation_dtype"],
        "shape": environment["observation_shape"],
    }
    arrays = environment.get("parts") or [alone]
    layouts = {
        array["name"]: _old_layout(array["shape"]) for array in arrays if len(array["shape"]) in (2, 3)
    }
    pixels = [array["name"] for array in arrays if array["dtype"] == "|u1"]
    return {**environment, "pixels": pixels, "image_layouts": layouts}


def with_network_meanings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the facts of an exported network, whose shapes begin with the stack if there is one."""
    if "pixels" in facts:
        return dict(facts)
    frames = 1 if facts["stack"] > 1 else 0
    shapes = {name: shape[frames:] for name, (_, shape) in facts["observations"].items()}
    if facts["network"] in ("mlp", "table"):
        shapes = {}
    layouts = {name: _old_layout(shape) for name, shape in shapes.items() if len(shape) in (2, 3)}
    pixels = [name for name, (dtype, _) in facts["observations"].items() if dtype == "|u1"]
    return {**facts, "pixels": pixels, "image_layouts": layouts}


def _old_layout(shape: Sequence[int]) -> str:
    if len(shape) == 2:
        return "HW"
    return "HWC" if shape[2] <= shape[0] else "CHW"


def rename_settings(tree: dict[str, Any]) -> None:
    """Replaces old names and values of settings by today's, in place. tree: section -> settings."""
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
