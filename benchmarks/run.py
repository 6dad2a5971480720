"""Every benchmark, one after the other: `make bench`. Each prints ratios, both sides measured in one run."""

from __future__ import annotations

import importlib

BENCHMARKS = (
    "update_step",
    "learner_through_ray",
    "local_learner",
    "threads",
    "actor_speed",
    "priority_structures",
    "replay_in_process",
    "replay_memory",
    "replay_through_ray",
    "metrics_cost",
    "scale",
)


def main() -> None:
    for name in BENCHMARKS:
        print(f"== benchmarks.{name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
