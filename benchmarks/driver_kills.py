"""Kills the driver at random moments, from the very first one on, and starts the same command again.

`python -m benchmarks.driver_kills --rounds 50`. In every other round settings of the run change. Each start
must go on: totals never fall below the last checkpoint, no transition is taken twice, and no push is refused.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.chaos import audit
from benchmarks.failures import SMALL, arguments
from benchmarks.followed_run import CLASSES, FollowedRun
from cluster.checkpoints.checkpoint import DamagedCheckpointError, checkpoint_folders, read_manifest
from replay_service.journal.segments import BLOCK, TRANSITIONS, read_segment, segment_paths

MOST_SECONDS = 12.0
_LOOK_SECONDS = 0.05

Persist = Literal["continuous", "checkpoint"]


@dataclass(frozen=True)
class Floor:
    """The totals of the newest checkpoint; those of a run that goes on are never below."""

    updates_total: int = 0
    checkpoints_total: int = 0
    episodes_total: int = 0


@dataclass(frozen=True)
class Killed:
    """The findings of all rounds: how many lines of metrics there were, and a sentence for each fault."""

    rounds: int
    resumed: int
    roles_killed: int
    lines: int
    faults: tuple[str, ...]


def settings_of(number: int, chance: random.Random) -> list[str]:
    """The arguments of a round beside the command's own: none in even rounds."""
    if number % 2 == 0:
        return []
    changed = {
        "run.restarts": chance.choice(("0", "3", "100")),
        "pacing.samples_per_insert": chance.choice(("1", "4", "16")),
    }
    return [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]


def floor_of(run_dir: Path) -> Floor:
    """The totals of the newest checkpoint that is whole."""
    for folder in reversed(checkpoint_folders(run_dir / "checkpoints")):
        with suppress(DamagedCheckpointError):
            counters = read_manifest(folder).run.counters
            return Floor(counters.updates, counters.checkpoints, counters.episodes)
    return Floor()


def kill_rounds(folder: Path, rounds: int, persist: Persist, chance: random.Random) -> Killed:
    """Plays all rounds in one run directory and ends the last one by SIGTERM."""
    run = FollowedRun(arguments({**SMALL, "replay.persist": persist}), folder / "run")
    faults: list[str] = []
    roles_killed = 0
    floors = [(0, Floor())]
    most_seconds = MOST_SECONDS
    try:
        for number in range(rounds):
            more = settings_of(number, chance)
            began = time.monotonic()
            run.start("--resume", "auto", *more)
            if number == rounds // 5:
                # Until here most starts have been killed before their first checkpoint; then hardly any is.
                run.wait_for(lambda: checkpoint_folders(run.run_dir / "checkpoints"), "a checkpoint")
                most_seconds = max(MOST_SECONDS, 2.0 * (time.monotonic() - began))
            until = time.monotonic() + chance.uniform(0.0, most_seconds)
            # With replacements in between, incarnations are not what they were at the start.
            strikes = "run.restarts=0" not in more and chance.random() < 0.5
            while time.monotonic() < until and _lives(run):
                if strikes and (victims := run.roles(chance.choice(list(CLASSES)))):
                    with suppress(psutil.NoSuchProcess):
                        psutil.Process(victims[0]).kill()
                    roles_killed, strikes = roles_killed + 1, False
                time.sleep(_LOOK_SECONDS)
            if not _lives(run):
                faults.append(f"round {number} {more} ended by itself:\n{run.output()[-2000:]}")
            run.finish(signal.SIGKILL)
            floors.append((len(run.lines()), floor_of(run.run_dir)))
        run.start("--resume", "auto")
        before = len(run.lines())
        run.wait_for(lambda: len(run.lines()) > before + 20 and _moves(run, before), "a run that goes on")
        status = run.finish(signal.SIGTERM)
        if status != 143:
            faults.append(f"the last round ended with {status}:\n{run.output()[-2000:]}")
        faults += _below(run, floors)
    finally:
        run.close()
    if persist == "continuous":  # otherwise journals have checkpoints only, between which sequences jump
        faults += audit(run.run_dir / "replay").gaps
    faults += _twice(run.run_dir / "replay")
    resumed = sum("resumed from checkpoint" in text for text in run.events())
    if not resumed:
        faults.append("no round went on from a checkpoint")
    return Killed(rounds, resumed, roles_killed, len(run.lines()), tuple(faults))


def _lives(run: FollowedRun) -> bool:
    return run.driver is not None and run.driver.poll() is None


def _moves(run: FollowedRun, since: int) -> bool:
    """Whether the run has learned from new transitions since that line."""
    first, last = run.lines()[since], run.newest()
    return all(last[name] > first[name] for name in ("updates_total", "inserted_transitions_total"))


def _below(run: FollowedRun, floors: Sequence[tuple[int, Floor]]) -> list[str]:
    """A sentence for each line of metrics below the checkpoint before it, and for refused pushes."""
    found = []
    lines = run.lines()
    ends = [begin for begin, _ in floors[1:]] + [len(lines)]
    for (begin, floor), end in zip(floors, ends, strict=True):
        for line in lines[begin:end]:
            for name, least in vars(floor).items():
                if (line.get(name) or 0) < least:
                    found.append(f"{name} is {line.get(name)}, the checkpoint had {least}")
            if line.get("refused_pushes_total"):
                found.append(f"{line['refused_pushes_total']} pushes were refused")
    return sorted(set(found))


def _twice(replay: Path) -> list[str]:
    """A sentence for each record of a journal whose keys an earlier record has."""
    found = []
    for folder in sorted(replay.glob("shard-*")):
        newest = -1
        for path in segment_paths(folder):
            for record in read_segment(path).records:
                if record.kind in (BLOCK, TRANSITIONS):
                    if record.first_key <= newest:
                        found.append(f"{path.name}: key {record.first_key} comes twice")
                    newest = record.first_key
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--persist", choices=("continuous", "checkpoint"), default="continuous")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="qfleet-kills-") as folder:
        found = kill_rounds(Path(folder), options.rounds, options.persist, random.Random(options.seed))
    print(
        f"{found.rounds} rounds, {found.resumed} of them resumed from a checkpoint, "
        f"{found.roles_killed} roles killed, {found.lines} lines of metrics, {len(found.faults)} faults"
    )
    print(*found.faults, sep="\n")
    sys.exit(1 if found.faults else 0)


if __name__ == "__main__":
    main()
