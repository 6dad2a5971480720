"""The part of docs/failures.md on accidents, written from what `benchmarks.chaos --accidents` has played."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accidents import ACCIDENTS, Accident, Ended, play, problems
from benchmarks.failures import Runtime
from benchmarks.recorded_runs import read_runs, write_runs

TITLE = "## When a run is ended from outside"
_HEAD = f"""{TITLE}

`python -m benchmarks.chaos --accidents` writes this table. Each line is two real runs: one is struck
before its first checkpoint, the other after it. Then the same command goes on with `--resume auto`. In
each of them the exit status was that of the second column, the log of events said the words of the last
one, and 10 seconds after the end no process, no file in `/dev/shm` and no temporary file was left,
except where a cell says otherwise in bold.

*Signals.* Whoever signals every process of a run means the driver: roles leave SIGINT, SIGTERM and
SIGHUP to it, and the servers of a Ray of the run's own block them. The driver writes the newest
weights, then a checkpoint, and ends with 128 and the number of the signal. What an environment has
started ends by SIGTERM as usual. SIGUSR1, SIGUSR2 and SIGXCPU, by which batch schedulers warn of the
end of a job (`--signal` of Slurm, `-notify` of Grid Engine, limits of CPU time), do the same, however
often they come; who trains from a program that handles them keeps its handlers. A run that was
suspended, by ctrl-Z or with its container, goes on as if nothing had been.

*Ray.* The driver looks at the processes of its Ray before each call to it, or asks a GCS on another
machine every second and waits four seconds for an answer. Roles live on for a while without either
server: the newest weights and a checkpoint are saved as long as they answer. Without its raylet the
driver can read no large value any more, so both hold the learner's state of some seconds before. A raylet
ends ten seconds after its agents, so the death of an agent counts as its own. `ray stop` of another
project sends SIGTERM and, 16 seconds later, SIGKILL, which its times include; agents of a cluster end at
once, and a SIGTERM that waits for a server of the run's own Ray is taken as that.

| accident | status | runtime | before the first checkpoint | after it | the run says |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Played:
    """One accident as the data file keeps it. accident: its name."""

    accident: str
    runtime: Runtime
    checkpoint: bool
    ended: Ended


def play_all(data: Path, only: Sequence[str] | None) -> list[Played]:
    """Plays the accidents that the data file does not hold yet; returns all that it holds then."""
    held = read_runs(data, Played)
    known = {(each.accident, each.runtime, each.checkpoint) for each in held}
    for accident in ACCIDENTS:
        for runtime in accident.runtimes:
            for checkpoint in (False, True):
                wanted = only is None or accident.name in only
                if not wanted or (accident.name, runtime, checkpoint) in known:
                    continue
                with tempfile.TemporaryDirectory(prefix="qfleet-accident-") as folder:
                    ended = play(accident, runtime, Path(folder), checkpoint=checkpoint)
                found = problems(accident, ended, checkpoint=checkpoint)
                print(accident.name, runtime, f"{checkpoint=}", found or ended, flush=True)
                held.append(Played(accident.name, runtime, checkpoint, ended))
                write_runs(data, held)
    return held


def section(played: Sequence[Played]) -> str:
    """The text of that part."""
    ended = {(each.accident, each.runtime, each.checkpoint): each.ended for each in played}
    lines = []
    for accident in ACCIDENTS:
        for runtime in accident.runtimes:
            before, after = (ended.get((accident.name, runtime, checkpoint)) for checkpoint in (False, True))
            cells = [_cell(accident, before, checkpoint=False), _cell(accident, after, checkpoint=True)]
            said = next(
                (text for each in (after, before) if each for text in each.said if accident.says in text), ""
            )
            said = re.sub(r"\(process \d+\)", "(process …)", " ".join(said.split()[1:])).replace("|", "\\|")
            lines.append(
                f"| {accident.title} | {accident.status} | {runtime} | {' | '.join(cells)} | {said} |"
            )
    return _HEAD + "\n".join(lines) + "\n"


def _cell(accident: Accident, ended: Ended | None, *, checkpoint: bool) -> str:
    if ended is None:
        return "not played"
    found = problems(accident, ended, checkpoint=checkpoint)
    goes_on = f"goes on from version {ended.resumed}" if ended.resumed else "begins anew"
    return f"ends in {ended.seconds:.1f} s, {goes_on}" + "".join(f" **{problem}**" for problem in found)
