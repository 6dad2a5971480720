"""docs/failures.md, written from what `python -m benchmarks.chaos --table` has measured."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.failures import FROZEN_SECONDS, CannotBeInjectedError, Failure, Outcome, Runtime
from benchmarks.recorded_runs import read_runs, write_runs

_HEAD = f"""# Failures

What can be lost, how long until training moves again, and what a run says. `python -m benchmarks.chaos
--table` writes this page. It injects each failure for real into a run with one actor and one shard, so
that nothing moves before the lost role is back: CartPole, prioritized replay with a journal, a checkpoint
every 3 seconds. The learner's state is kept every 5 seconds.

*Killed* processes are noticed at once. *Frozen* ones (stopped, or hanging) are noticed because they do
not answer within a limit. Slow ones are left alone: chunks end after 2 s with the step or update at hand.

| role | limit |
|---|---|
| shard | `run.frozen_seconds` (30) |
| learner | twice that, or 20 times its longest chunk |
| evaluator | four times that, or 20 times its longest chunk |
| actor | a minute, 20 times its longest chunk, or 4 times its longest start |

Of several limits the largest counts; before its first chunk a role has 20 times `run.frozen_seconds`.
`actors.chunk_deadline_seconds` replaces those of actors. Only time counts in which the coordinator itself
was awake (`cluster/control/timeouts.py`). The supervisor (`cluster/supervisor.py`) then kills the process
and replaces it like one that died. Here
`run.frozen_seconds` was {FROZEN_SECONDS:g} seconds; the table gives what comes on top of the limit.

Each replacement is paid from `run.restarts` (10); roles that go with one machine cost one together. An
actor whose environment hangs is paid from `actors.env_restarts`. `qfleet_role_restarts_total` counts
replacements by role and cause (process, object, frozen, memory).

"""
_TAIL = """
*Soak.* `python -m benchmarks.chaos --minutes 30 --every 20 --env CartPole-v1` kills a random role at
random times. It checks that the run still solves its task, loses no acknowledged transition (by the
sequences in the journals), keeps its samples per insert, counts every kill, and leaks neither processes
nor memory.

*Clusters.* For `--resume auto` the run directory must be on storage that outlives the machines. With

<!-- not run: needs a cluster; tests/deploy/ submits jobs -->
```sh
ray job submit … -- python -m qfleet train configs/apex.yaml --run-dir /shared/runs/apex --resume auto
```

the same command begins a run or goes on with it, so whatever restarts the job (KubeRay's `backoffLimit`,
a cron job, you) need not know which. Ray notices a killed node after 16 seconds, and a hung or
unreachable one after 66. In this table it was 4 and 7 seconds, because the head's environment had
`RAY_health_check_initial_delay_ms`, `_period_ms` and `_timeout_ms` = 1000 and `_failure_threshold` = 3. A
host that was unreachable for longer is dead to Ray: its roles are replaced elsewhere, and those on it end
themselves.
"""


@dataclass(frozen=True)
class Measured:
    """Injections of one failure on one runtime. missing: the reason if there are none."""

    failure: Failure
    runtime: Runtime
    outcomes: tuple[Outcome, ...]
    missing: str = ""


@dataclass(frozen=True)
class Injected:
    """One injection as the data file keeps it; failure: its name."""

    failure: str
    runtime: Runtime
    outcome: Outcome


def measure(failure: Failure, runtime: Runtime, repeats: int, data: Path) -> Measured:
    """Injects the failure, each time into a run of its own, until the data file holds `repeats` of it."""
    injected, key = read_runs(data, Injected), (failure.name, runtime)
    while len(held := [each.outcome for each in injected if (each.failure, each.runtime) == key]) < repeats:
        with tempfile.TemporaryDirectory(prefix="qfleet-failure-") as folder:
            try:
                outcome = failure.play(Path(folder), runtime)
            except CannotBeInjectedError as error:
                print(f"{failure.name}, {runtime}: {error}", flush=True)
                return Measured(failure, runtime, (), f"not injected: {error}")
            except RuntimeError as error:
                print(f"{failure.name}, {runtime}: {error}", flush=True)
                return Measured(failure, runtime, (), "**it did not go on**")
        print(f"{failure.name}, {runtime}: {_seconds([outcome])}; lost: {outcome.lost}", flush=True)
        injected.append(Injected(failure.name, runtime, outcome))
        write_runs(data, injected)
    return Measured(failure, runtime, tuple(held))


def page(measured: Sequence[Measured]) -> str:
    """The text of docs/failures.md."""
    lines = [
        f"{_HEAD}Seconds are medians of as many injections as stand in brackets; what was lost and said is",
        "that of the middle one.",
        "",
        "| failure | runtime | what is lost | training moves again after | the run says |",
        "|---|---|---|---|---|",
    ]
    for each in measured:
        if not each.outcomes:
            lines.append(f"| {each.failure.title} | `{each.runtime}` | | {each.missing} | |")
            continue
        typical = sorted(each.outcomes, key=lambda outcome: outcome.seconds)[len(each.outcomes) // 2]
        said = "<br>".join(_anonymous(text) for text in typical.said[:3]) or "nothing"
        moves = f"{_seconds(each.outcomes)} ({len(each.outcomes)})"
        lines.append(f"| {each.failure.title} | `{each.runtime}` | {typical.lost} | {moves} | {said} |")
    return "\n".join(lines) + "\n" + _TAIL


def _seconds(outcomes: Sequence[Outcome]) -> str:
    limit = outcomes[0].limit_seconds
    middle = median(outcome.seconds - outcome.limit_seconds for outcome in outcomes)
    if middle == 0.0:
        return "at once: it never stands still"
    return f"the limit + {middle:.1f} s" if limit else f"{middle:.1f} s"


def _anonymous(text: str) -> str:
    """The text without process ids, ports and temporary paths, which differ from run to run."""
    text = re.sub(r"\(process \d+\)", "(process …)", text)
    return re.sub(r"/\S+?/run\b", "RUN_DIR", text).replace("|", "\\|")
