"""Every benchmark, one after the other: `make bench`. Each prints ratios, both sides measured in one run."""

from __future__ import annotations

import importlib

BENCHMARKS = (
    "update_step",
    "local_learner",
    "threads",
    "priority_structures",
    "replay_in_process",
    "replay_memory",
    "replay_through_ray",
)


def main() -> None:
    for name in BENCHMARKS:
        print(f"== benchmarks.{name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
