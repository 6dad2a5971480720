"""A run over one, two and three Ray nodes: env steps per second of actors whose environment waits.

Run as root as `python -m benchmarks.ray_nodes [--nodes N …] [--actors N]`. Each node has a network namespace
of this machine to itself, joined to the others by a bridge (tests/deploy/support/qfleet_hosts.py), which the
script removes at the end. One step of an actor's one environment takes 5 ms and no processor. Prints the
rates by number of nodes, and how many actors were on each node.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.processor import processor
from benchmarks.sleeping_actors import second_half, watched
from benchmarks.slow_steps import STEP_SECONDS

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT / "tests/deploy/support"))

from qfleet_hosts import ray_hosts, what_is_missing  # noqa: E402 - found by the line above

SECONDS = 12.0
_CORE_CPUS = 3
"""Those of a shard, the learner and the evaluator."""


def inside(num_actors: int) -> None:
    """Prints what a run over the cluster of RAY_ADDRESS measures, as JSON."""
    watch = watched(num_actors, SECONDS, "run.runtime=cluster")
    first, last = second_half(watch, SECONDS)
    seconds = last.at - first.at
    found = {
        "env steps/s": (last.env_steps - first.env_steps) / seconds,
        "updates/s": (last.updates - first.updates) / seconds,
        "up s": watch.up_seconds,
    }
    print(json.dumps(found))


def measure(nodes: int, actors: int) -> tuple[dict[str, float], list[int]]:
    """What a run over so many nodes with so many actors each measures, and the actors seen on each."""
    cpus = (actors + _CORE_CPUS, *[actors] * (nodes - 1))
    with ray_hosts(cpus) as hosts, ThreadPoolExecutor(1) as pool:
        address = f"RAY_ADDRESS={hosts[0].address}:6399"
        module = [sys.executable, "-m", "benchmarks.ray_nodes", "--inside", str(actors * nodes)]
        run = pool.submit(hosts[0].run, "env", address, *module)
        placed = [0] * nodes
        while not run.done():
            placed = max(placed, [len(host.roles("ActorRole")) for host in hosts], key=sum)
            time.sleep(2.0)
        done = run.result()
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1]), placed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--actors", type=int, default=8, help="on each node")
    parser.add_argument("--inside", type=int, help="run that many actors on the cluster of RAY_ADDRESS")
    options = parser.parse_args()
    if options.inside:
        inside(options.inside)
        return
    if (reason := what_is_missing()) is not None:
        raise SystemExit(reason)
    os.environ["PYTHONPATH"] = str(_ROOT)  # for the processes of each node
    print(processor())
    print(f"{options.actors} actors a node with one environment each, {STEP_SECONDS * 1000:g} ms a step")
    print(
        "| nodes | actors on each | env steps/s | of one node times their number | updates/s | up after, s |"
    )
    print("|---" * 6 + "|", flush=True)
    one = None
    for nodes in options.nodes:
        found, placed = measure(nodes, options.actors)
        rate = found["env steps/s"]
        one = one or rate / nodes
        line = [f"{nodes}", ", ".join(map(str, placed)), f"{rate:,.0f}", f"{rate / (one * nodes):.2f}"]
        line += [f"{found['updates/s']:.0f}", f"{found['up s']:.1f}"]
        print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
