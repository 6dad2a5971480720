"""Run directories whose metrics are known, as a run would have written them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.record.logs import LogSource


def synthetic(
    folder: Path,
    *,
    seed: int = 0,
    gradient: float = 1.0,
    lines: int = 50,
    settings: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    events: Sequence[tuple[str, str]] = (("END", "enough"),),
) -> Path:
    """A run directory in which every metric is a known line."""
    (folder / "logs").mkdir(parents=True)
    config = {"env": {"id": "Known-v0"}, "run": {"seed": seed, "runtime": "serial"}, **(settings or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "provenance.json").write_text(json.dumps({"commit": "abc", "packages": {"numpy": "2"}}))
    metrics = [
        {
            "run_seconds": float(index),
            "env_steps_total": 100 * index,
            "updates_total": 10 * index,
            "weights_version": 10 * index,
            "train_return_mean": gradient * index + seed,
            "best_return_mean": gradient * index + seed,
            "env_steps_per_second": 100.0,
            "role_seconds_total": {"learner": {"wait": 1.0 * index, "update": 3.0 * index}},
            "process_resident_memory_bytes": {"learner": 2e8, "actor": 1e8},
            **(extra or {}),
        }
        for index in range(lines)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    evaluations = [
        {"version": version, "confirms": confirms, "returns": [version - 1.0, version + 1.0 + 100 * confirms]}
        for version in (0, 100, 200)
        for confirms in (False, True)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    source = LogSource("coordinator", 0, 0.0)
    (folder / "logs" / "events.log").write_text(
        "".join(source.lines(level, text, 3.0) for level, text in events)  # type: ignore[arg-type]
    )
    return folder


def diagnosed(verdict: str, *evidence: str, stage: str = "actor") -> dict[str, Any]:
    """Verdict and warnings of a line of metrics; each piece of evidence is one for stale data."""
    others = {"since_updates": 7, "cause": "long chunks", "cure": "shorter ones"}
    warnings = [{"name": "stale_data", "evidence": text, **others} for text in evidence]
    return {"verdict": {"stage": stage, "text": verdict}, "warnings": warnings}


def double_and_single(folder: Path) -> list[Path]:
    """Eight runs: learner.double false and true, four seeds each."""
    return [
        synthetic(folder / f"{double}-{seed}", seed=seed, settings={"learner": {"double": double}})
        for double in (False, True)
        for seed in range(4)
    ]
