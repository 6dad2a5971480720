"""The process engine against Ray: calls, large values, deaths, start, memory and whole runs.

Run as `python -m benchmarks.engines [calls|starts|runs] [--pairs N]`. Both engines run in turns, in one
process (calls) or as commands (starts, runs: `qfleet train CartPole-v1`); the numbers are medians.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.called_roles import Target, both_engines
from benchmarks.processor import processor
from cluster.engines.engine import Engine, Handle, Need, RoleDied

CALLS = 300
ROUNDS = 15


def _seconds(work: Callable[[], object], times: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def _call(engine: Engine, handle: Handle[Any], method: Callable[..., Any], *args: object) -> Any:
    return engine.get(engine.call(handle, method, *args)[0])


def measure_calls(engine: Engine) -> dict[str, float]:
    """Seconds of each kind of call."""
    target = engine.spawn("target", Target, need=Need(cpus=0.0))
    asker = engine.spawn("asker", Target, engine.calls, target, need=Need(cpus=0.0))
    _call(engine, target, Target.nothing)
    _call(engine, asker, Target.push, 1, 1)
    found = {"empty call": _seconds(lambda: _call(engine, target, Target.nothing), CALLS)}
    for text, num_bytes in (("64 KB", 64 << 10), ("4 MB", 4 << 20)):
        found[f"push of {text}, acknowledged"] = _call(engine, asker, Target.push, num_bytes, ROUNDS)
    for text, num_bytes in (("1 MB", 1 << 20), ("18 MB", 18 << 20)):
        found[f"reply of {text}"] = statistics.median(
            _seconds(partial(_call, engine, target, Target.zeros, num_bytes)) for _ in range(ROUNDS)
        )
    deaths = []
    for number in range(5):
        victim = engine.spawn(f"victim {number}", Target, need=Need(cpus=0.0))
        pid = _call(engine, victim, Target.pid)
        (never,) = engine.call(victim, Target.sleep)
        engine.wait([never], 0.05)
        os.kill(pid, signal.SIGKILL)
        began = time.perf_counter()
        with suppress(RoleDied):
            engine.get(never)
        deaths.append(time.perf_counter() - began)
    found["death noticed"] = statistics.median(deaths)
    engine.kill(target)
    engine.kill(asker)
    return found


def compare_calls(pairs: int) -> None:
    """Prints seconds of calls through both engines, and their ratio."""
    found: dict[str, list[tuple[float, float]]] = {}
    with both_engines() as engines:
        for _ in range(pairs):
            mine, theirs = map(measure_calls, engines.values())
            for name in mine:
                found.setdefault(name, []).append((mine[name], theirs[name]))
    print(f"{'':32s} {'processes':>10s} {'Ray':>10s} {'ratio':>6s}")
    for name, seconds in found.items():
        mine, theirs = (statistics.median(side) for side in zip(*seconds, strict=True))
        print(f"{name:32s} {mine * 1e3:7.3f} ms {theirs * 1e3:7.3f} ms {mine / theirs:6.2f}")


def _train(runtime: str, folder: Path, *arguments: str, seed: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "cluster.main", "train", "CartPole-v1", "--runtime", runtime),
            *("--seed", str(seed), "--run-dir", str(folder / f"{runtime}-{seed}"), *arguments),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def measure_start(runtime: str, folder: Path, seed: int) -> dict[str, float]:
    """Seconds from the command to the start of each role, seconds of the end, and bytes while it runs."""
    began_at = time.time()
    process = _train(runtime, folder, "--set", "stop.target_return=null", seed=seed)
    log = folder / f"{runtime}-{seed}" / "logs" / "events.log"
    deadline = time.monotonic() + 120.0
    while not (log.exists() and "all roles are up" in log.read_text()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{log}: roles do not come up")
        time.sleep(0.01)
    up = {"all roles up": time.time() - began_at}
    time.sleep(3.0)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    up["bytes"] = float(sum(one.memory_full_info().pss for one in family))
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    up["end after SIGTERM"] = time.monotonic() - asked
    return up


def compare_starts(pairs: int) -> None:
    """Prints the time until all roles are up and the memory of the processes, in both runtimes."""
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(pairs):
            for runtime in ("local", "ray"):
                for name, value in measure_start(runtime, Path(folder), seed).items():
                    found.setdefault(name, {}).setdefault(runtime, []).append(value)
    for name, sides in found.items():
        local, ray = (statistics.median(sides[runtime]) for runtime in ("local", "ray"))
        print(f"{name:20s} local {local:.4g}   ray {ray:.4g}   ratio {local / ray:.2f}   {sides['local']}")


def compare_runs(pairs: int) -> None:
    """Prints the seconds of `qfleet train CartPole-v1` until it is solved, in three runtimes."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(pairs):
            for runtime in ("local", "ray", "serial"):
                began = time.monotonic()
                output, _ = _train(runtime, Path(folder), seed=seed).communicate()
                seconds = time.monotonic() - began
                found.setdefault(runtime, []).append(seconds)
                solved = "was reached and confirmed" in output
                print(json.dumps({"seed": seed, "runtime": runtime, "seconds": seconds, "solved": solved}))
    medians = {runtime: statistics.median(seconds) for runtime, seconds in found.items()}
    print(medians, f"local / ray {medians['local'] / medians['ray']:.2f}")


def main() -> None:
    """Runs the parts that are named; all by default."""
    parts = {"calls": compare_calls, "starts": compare_starts, "runs": compare_runs}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[*parts])
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    print(processor(), flush=True)
    for part in options.parts:
        parts[part](options.pairs)


if __name__ == "__main__":
    main()
