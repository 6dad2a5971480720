"""Kills random roles of a run and checks that it survives: nothing lost, nothing leaked, the task solved.

    python -m benchmarks.chaos --minutes 30 --every 20 --env CartPole-v1
    python -m benchmarks.chaos --table [--repeats 3] [--only actor learner]     writes docs/failures.md
    python -m benchmarks.chaos --accidents [--only term gcs]      writes its table of accidents

Injections that docs/failures.json holds are not repeated, so a table that was stopped goes on where it was.

With a continuous journal no acknowledged transition may be lost. Each shard accepts a writer's pushes only in
their order, so a missing one leaves a gap in the journals' sequences, which the script reads after the end.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from benchmarks.accident_page import TITLE, Played, play_all, section
from benchmarks.accidents import ACCIDENTS
from benchmarks.failure_page import measure, page
from benchmarks.failures import FAILURES, arguments, restarts
from benchmarks.followed_run import CLASSES, FollowedRun, Line
from benchmarks.recorded_runs import read_runs
from cluster.record.run_dir import read_config
from cluster.settings.config import RunConfig
from replay_service.codec import decode
from replay_service.journal.segments import BLOCK, DELIVERY, read_segment, segment_paths, unpack_delivery

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "failures.md"
DATA = ROOT / "docs" / "failures.json"
ACCIDENT_DATA = ROOT / "docs" / "accidents.json"
TARGETS = {"CartPole-v1": 475.0}
MOST_RECOVERY_SECONDS = {"actor": 5.0, "shard": 5.0, "learner": 15.0, "evaluator": 30.0}
SETTINGS = {
    "actors.num_actors": "2",
    "replay.num_shards": "2",
    "replay.persist": "continuous",
    "checkpoint.every_seconds": "20",
    "metrics.every_seconds": "0.2",
    "run.restarts": "1000000",
    # The run goes on after it has solved the task: it must stay good.
    "stop.env_steps": "1000000000000",
    "stop.target_return": "1000000000",
}
# The recovery of a role that is killed again before it was up is not measured.
_SAMPLE_SECONDS = 5.0
_MOST_GROWTH_BYTES = 48 << 20
_MOST_GROWTH = 0.15


@dataclass(frozen=True)
class Kill:
    """One kill -9. seconds: until training moved again; None if the next kill came first."""

    kind: str
    at_seconds: float
    seconds: float | None


@dataclass(frozen=True)
class Audit:
    """Contents of the journals after the end. gaps: a sentence for each gap in a writer's sequence."""

    transitions: int
    blocks: int
    gaps: tuple[str, ...]


@dataclass
class Soak:
    """Observations of the run. resident_bytes: memory over time of each process that is never killed."""

    kills: list[Kill] = field(default_factory=list)
    resident_bytes: dict[tuple[int, str], list[tuple[float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    num_processes: list[int] = field(default_factory=list)


def audit(replay: Path) -> Audit:
    """Reads every shard's journal: each writer's pushes must follow each other without a gap."""
    transitions = blocks = 0
    gaps: list[str] = []
    for folder in sorted(replay.glob("shard-*")):
        due: dict[int, tuple[int, int]] = {}
        total = 0
        for path in segment_paths(folder):
            segment = read_segment(path)
            if segment.problem is not None and not segment.torn:
                gaps.append(f"{path.name}: {segment.problem}")
            for record in segment.records:
                if record.kind == DELIVERY:
                    delivered = unpack_delivery(record.payload)
                    gaps += _differences(path, due, dict(delivered.writers))
                    due, total = dict(delivered.writers), delivered.inserted_transitions_total
                elif record.kind == BLOCK:
                    block = decode(record.payload)
                    expected = due.get(block.writer)
                    found = (block.incarnation, block.sequence)
                    begins = expected is None or block.incarnation > expected[0]
                    if found != expected and not (begins and block.sequence == 0):
                        gaps.append(f"{path.name}: writer {block.writer} is at {found}, {expected} was due")
                    due[block.writer] = (block.incarnation, block.sequence + 1)
                    total, blocks = total + block.num_transitions, blocks + 1
        transitions += total
    return Audit(transitions, blocks, tuple(gaps))


def _differences(
    path: Path, due: dict[int, tuple[int, int]], said: dict[int, tuple[int, int]]
) -> Iterator[str]:
    """A sentence for each writer whose sequence in a segment's head differs from the end of the last one."""
    for writer in due | said if due else ():
        if said.get(writer) != due.get(writer):
            yield f"{path.name}: begins with writer {writer} at {said.get(writer)}, {due.get(writer)} was due"


def soak(run: FollowedRun, seconds: float, every_seconds: float, chance: random.Random) -> Soak:
    """Kills a random role, at random times every_seconds apart on average, until the time is over."""
    found = Soak()
    began = time.monotonic()
    next_kill, next_sample = began + chance.expovariate(1.0 / every_seconds), began
    while (now := time.monotonic()) < began + seconds:
        if now >= next_sample:
            next_sample = now + _SAMPLE_SECONDS
            _sample(run, found, now - began)
        if now < next_kill:
            _still_runs(run)
            time.sleep(0.05)
            continue
        next_kill = now + chance.expovariate(1.0 / every_seconds)
        _kill_one(run, found, now - began, min(next_kill, began + seconds), chance)
    return found


def _kill_one(run: FollowedRun, found: Soak, at: float, until: float, chance: random.Random) -> None:
    """Kills one role and follows the run until it moves again, or the next kill is due."""
    kind = chance.choice(list(CLASSES))
    victims = run.roles(kind)
    if not victims:
        return
    before = run.newest()
    with suppress(psutil.NoSuchProcess):
        psutil.Process(chance.choice(victims)).kill()
    struck, moved = time.monotonic(), None
    seen_dead: Line | None = None
    while moved is None and (time.monotonic() < until or seen_dead is None):
        _still_runs(run)
        line = run.newest()
        if seen_dead is None:
            seen_dead = line if restarts(line, kind) > restarts(before, kind) else None
        elif _moves(line, seen_dead, kind):
            moved = time.monotonic() - struck
        time.sleep(0.02)
    found.kills.append(Kill(kind, at, moved))


def _moves(line: Line, since: Line, kind: str) -> bool:
    if line["roles_up"] != line["roles_wanted"]:
        return False
    names = ("inserted_transitions_total", "updates_total")
    return kind == "evaluator" or all(line[name] > since[name] for name in names)


def _sample(run: FollowedRun, found: Soak, at: float) -> None:
    count = 0
    for process in run.family():
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            count += 1
            if "ray::" not in title and not process.name().startswith("qf "):
                found.resident_bytes[process.pid, title[:60]].append((at, process.memory_info().rss))
    found.num_processes.append(count)


def _still_runs(run: FollowedRun) -> None:
    if run.driver is None or run.driver.poll() is not None:
        raise RuntimeError(f"the run has ended\n{run.output()[-4000:]}")


def growth(samples: Sequence[tuple[float, int]], seconds: float) -> tuple[int, int] | None:
    """Medians of a process's memory in the second and the last quarter; None if it did not live for both."""
    quarters = [[held for at, held in samples if low <= at / seconds < low + 0.25] for low in (0.25, 0.75)]
    if not all(quarters):
        return None
    return int(median(quarters[0])), int(median(quarters[1]))


def verdicts(
    run: FollowedRun, found: Soak, seconds: float, target: float, config: RunConfig, status: int
) -> list[tuple[bool, str]]:
    """Each requirement as (whether it holds, sentence)."""
    last, journals = run.lines()[-1], audit(run.run_dir / "replay")
    counted, killed = last["role_restarts_total"], Counter(kill.kind for kill in found.kills)
    in_metrics = {kind: counted[kind]["process"] for kind in CLASSES}
    best = last["best_return_mean"]
    shown = last["inserted_transitions_total"]
    actors = config.actors
    on_their_way = (actors.num_actors or 1) * (actors.pushes_in_flight + 2)
    on_their_way *= (actors.steps_per_chunk or 1) * (actors.envs_per_actor or 1)
    ratio = last["samples_per_insert"] / last["samples_per_insert_target"]
    results = [
        (status == 143, f"ended with status {status} after {seconds / 60:.1f} minutes"),
        (best is not None and best >= target, f"best greedy return {best}, wanted {target:g}"),
        (
            all(in_metrics[kind] == killed[kind] for kind in CLASSES),
            f"kills {dict(killed)}, in the metrics {in_metrics}",
        ),
        (
            not journals.gaps and shown <= journals.transitions <= shown + on_their_way,
            f"journals: {journals.transitions:,} transitions ever taken, {shown:,} shown; "
            f"{journals.blocks:,} pushes still on disk, {len(journals.gaps)} missing {journals.gaps[:3]}",
        ),
        (abs(ratio - 1.0) <= 0.05, f"samples per insert {ratio:.3f} of the target"),
    ]
    for kind, most in MOST_RECOVERY_SECONDS.items():
        times = sorted(kill.seconds for kill in found.kills if kill.kind == kind and kill.seconds is not None)
        if times:
            results.append(
                (
                    median(times) <= most,
                    f"{kind}: moves again after {median(times):.1f} s (median of {len(times)}, longest "
                    f"{times[-1]:.1f}), wanted {most:g}",
                )
            )
    for (pid, title), samples in found.resident_bytes.items():
        held = growth(samples, seconds)
        if held is not None:
            more = held[1] - held[0]
            results.append(
                (
                    more <= max(_MOST_GROWTH_BYTES, _MOST_GROWTH * held[0]),
                    f"memory of {pid} {title}: {held[0] / 1e6:.0f} -> {held[1] / 1e6:.0f} MB",
                )
            )
    half = len(found.num_processes) // 2
    if half:
        early, late = max(found.num_processes[:half]), max(found.num_processes[half:])
        results.append((late <= early + 2, f"processes: at most {early} in one half, {late} in the other"))
    left = run.left()
    results.append((not left, f"processes left behind: {left or 'none'}"))
    return results


def run_soak(env: str, minutes: float, every_seconds: float, seed: int, target: float) -> bool:
    """Runs all of it; prints the observations and whether each requirement holds."""
    with tempfile.TemporaryDirectory(prefix="qfleet-chaos-") as folder:
        run = FollowedRun(arguments(SETTINGS, env), Path(folder) / "run")
        try:
            run.start("--seed", str(seed))
            run.wait_for(lambda: run.newest()["checkpoints_total"], "the first checkpoint")
            began = time.monotonic()
            found = soak(run, minutes * 60.0, every_seconds, random.Random(seed))
            # The last role killed has to come back first.
            run.wait_for(lambda: run.newest()["roles_up"] == run.newest()["roles_wanted"], "all roles")
            seconds = time.monotonic() - began
            status = run.finish(signal.SIGTERM)
            results = verdicts(run, found, seconds, target, read_config(run.run_dir), status)
        finally:
            run.close()
    for holds, text in results:
        print("ok  " if holds else "FAIL", text, flush=True)
    return all(holds for holds, _ in results)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between kills, on average")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--target", type=float, help="the greedy return that counts as solved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="inject each failure and write docs/failures.md")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="of each failure, and one on ray; default: %(default)s",
    )
    parser.add_argument(
        "--accidents", action="store_true", help="play each accident and write its table there"
    )
    parser.add_argument("--only", nargs="+", choices=[each.name for each in (*FAILURES, *ACCIDENTS)])
    options = parser.parse_args(given)
    if options.table:
        wanted = [failure for failure in FAILURES if options.only is None or failure.name in options.only]
        measured = [
            measure(failure, runtime, 1 if runtime == "ray" else options.repeats, DATA)
            for failure in wanted
            for runtime in failure.runtimes
        ]
        if options.only is None:
            PAGE.write_text(page(measured) + section(read_runs(ACCIDENT_DATA, Played)))
        return
    if options.accidents:
        played = play_all(ACCIDENT_DATA, options.only)
        PAGE.write_text(PAGE.read_text().partition(TITLE)[0] + section(played))
        return
    target = options.target if options.target is not None else TARGETS.get(options.env)
    if target is None:
        parser.error(f"--target: say which greedy return of {options.env} counts as solved")
    sys.exit(0 if run_soak(options.env, options.minutes, options.every, options.seed, target) else 1)


if __name__ == "__main__":
    main()
