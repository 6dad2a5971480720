"""`qfleet train --seeds`: a run for each seed, some at a time, in one folder, with a summary at the end.

Owns the processes of these runs, each a `qfleet train` of its own; must not import ray or torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from signal import Signals
from typing import BinaryIO

from cluster.api import Resume, ended, prepare
from cluster.engines.child import Child
from cluster.engines.machine import Machine, this_machine
from cluster.engines.own_code import OWN_ROOT
from cluster.engines.signals import STOP_SIGNALS, Interrupted, StopSignals, woken_by_signals
from cluster.engines.template import Template
from cluster.engines.threads import available_cores
from cluster.record.events import read_events
from cluster.record.line_file import read_objects, tail
from cluster.record.run_dir import holds_run, refuse_unusable
from cluster.record.run_lock import RunLock
from cluster.record.seed_group import SeedGroup, holds_group, read_group
from cluster.runtime.preload import forks_roles, run_template
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.load_config import dump_config
from cluster.settings.plan import make_plan
from cluster.settings.resolved import ResolvedConfig, ResolvedStop
from cluster.show.progress import progress
from cluster.show.status import snapshot_of
from cluster.wording import short
from replay_service.journal.durable_files import write_whole

_RETRY_SECONDS = 0.1
_LAST_WORDS = 12
_NEWEST_BYTES = 1 << 16
_MIN_GAP_SECONDS, _MAX_GAP_SECONDS = 5.0, 60.0
_LET_GO_SECONDS = 60.0
# -P: a folder of the user's own cannot shadow what this imports.
_CODE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from cluster.engines.child import stop_with; "
    "stop_with(int(sys.argv.pop(1))); from cluster.main import main; main()"
)


@dataclass(frozen=True)
class SeedsResult:
    """failed: the seeds whose runs failed. signal: the one that ended the command, if one did."""

    group: SeedGroup
    failed: tuple[int, ...]
    signal: Signals | None


@dataclass(frozen=True)
class _Started:
    """A run that goes on. slot: which share of the cores it has.

    end: can be read once it has ended; None where the system has no such descriptors.
    """

    seed: int
    slot: int
    process: subprocess.Popen[bytes] | Child
    end: int | None


def train_seeds(
    config: RunConfig,
    path: Path,
    seeds: Sequence[int],
    *,
    parallel: int = 1,
    resume: Resume = "never",
    say: Callable[[str], None] = print,
) -> SeedsResult:
    """Trains the config with each seed; a run that fails does not keep the others from running.

    Each run has the machine's cores divided by `parallel` if that leaves it two or more. A signal is passed
    on to the runs, which save; if this process dies, they save and stop, too.

    Args:
        config: its own seed counts for nothing.
        path: the folder of the group, which the caller may resume under the same rules as a run's. A group
            that is resumed goes on with its own seeds and with `seeds`.
        parallel: how many runs there are at a time.
        say: shows a line of text.

    Raises:
        ConfigError, EnvError: before any process starts.
    """
    seeds = _checked(config, seeds, parallel)
    goes_on = resume == "must" or (resume == "auto" and holds_group(path))
    if goes_on:
        seeds = tuple(dict.fromkeys((*read_group(path).seeds, *seeds)))
    elif holds_group(path):
        raise ConfigError(f"{path} already holds a group of seeds: go on with --resume, or choose another")
    else:
        refuse_unusable(path)
    group = SeedGroup(path, seeds)
    with closing(run_template()) as template:
        if forks_roles(config.run):
            template.start()
        with _share(0, parallel) as cores:
            resolved = _require_fit(config, parallel, cores)
        path.mkdir(parents=True, exist_ok=True)
        with closing(_lock(path, say, wait=goes_on)) as lock, StopSignals() as signals:
            try:
                write_whole(group.settings, dump_config(config).encode())
                group.write()
            except OSError as error:
                raise ConfigError(f"{path}: cannot be written: {error}") from None
            waiting = [seed for seed in seeds if not _has_ended(group, seed, resolved, say)]
            failed = _Runs(group, lock, parallel, resolved.stop, template, say).run(waiting, signals)
    return SeedsResult(group, failed, signals.received)


def _checked(config: RunConfig, seeds: Sequence[int], parallel: int) -> tuple[int, ...]:
    """The seeds. Raises ConfigError for what cannot be run."""
    if parallel < 1:
        raise ConfigError(f"--parallel is {parallel}; give 1 or more runs at a time")
    if any(seed < 0 for seed in seeds):
        raise ConfigError(f"--seeds has {min(seeds)}; a seed is 0 or more")
    if twice := [seed for seed in dict.fromkeys(seeds) if list(seeds).count(seed) > 1]:
        raise ConfigError(f"--seeds names {twice[0]} twice; give each seed once")
    if parallel > 1 and config.metrics.port:
        raise ConfigError(
            f"metrics.port is {config.metrics.port}, which only one run at a time can have: leave it out "
            "with --parallel, so that each run takes a free port"
        )
    return tuple(seeds)


def _require_fit(config: RunConfig, parallel: int, cores: int) -> ResolvedConfig:
    """The config as each run will resolve it. Raises ConfigError if so many runs do not fit."""
    prepared, machine = prepare(config), this_machine()
    shm = machine.shm_bytes
    part = Machine(
        cores,
        machine.memory_bytes // parallel,
        machine.available_bytes // parallel,
        None if shm is None else shm // parallel,
    )
    plan = make_plan(prepared.config, prepared.spec, part)
    if plan.problems:
        shared = f"with --parallel {parallel}, each run gets that share of this machine: "
        raise ConfigError((shared if parallel > 1 else "") + "\n".join(plan.problems))
    return prepared.config


def _lock(path: Path, say: Callable[[str], None], *, wait: bool) -> RunLock:
    """The group's lock. wait: runs of a command that was killed may still save, and hold it till then."""
    deadline, told = time.monotonic() + (_LET_GO_SECONDS if wait else 0.0), False
    while True:
        try:
            return RunLock(path)
        except ConfigError:
            if time.monotonic() >= deadline:
                raise
        if not told:
            say(f"{path} is in use: waits up to {_LET_GO_SECONDS:.0f} s for its runs to save and stop")
            told = True
        time.sleep(_RETRY_SECONDS)  # such a lock has no timeout


def _has_ended(group: SeedGroup, seed: int, config: ResolvedConfig, say: Callable[[str], None]) -> bool:
    run_dir = group.run_dir(seed)
    found = ended(run_dir, config) if holds_run(run_dir) else None
    if found is not None:
        say(f"seed {seed}: {found.reason}")
    return found is not None


@contextmanager
def _share(slot: int, parallel: int) -> Iterator[int]:
    """Within the block this process, and so what it starts, has a share of the cores; yields their number.

    Where a share would be a single core, all processes have all cores: a run has several processes.
    """
    each = available_cores() // parallel
    if parallel == 1 or each < 2 or not hasattr(os, "sched_setaffinity"):
        yield available_cores()
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[slot * each : (slot + 1) * each])
    try:
        yield available_cores()
    finally:
        os.sched_setaffinity(0, before)


def _start(arguments: Sequence[str], output: BinaryIO, held: int) -> subprocess.Popen[bytes]:
    """Starts a run with an interpreter of its own. held: a descriptor that it keeps open."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _CODE, str(OWN_ROOT), str(os.getpid()), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A terminal signals all its processes, and a run would take that for a second signal.
        start_new_session=True,
        pass_fds=[held],
    )


class _Runs:
    """The processes of a group's runs: starts them, watches them, and tells how they go."""

    def __init__(
        self,
        group: SeedGroup,
        lock: RunLock,
        parallel: int,
        stop: ResolvedStop,
        template: Template,
        say: Callable[[str], None],
    ) -> None:
        self._group = group
        self._lock = lock
        self._parallel = parallel
        self._stop = stop
        self._template = template
        self._say = say
        self._running: list[_Started] = []
        self._failed: list[int] = []
        self._gap_seconds = _MIN_GAP_SECONDS
        self._next_line = time.monotonic() + _MIN_GAP_SECONDS

    def run(self, seeds: Sequence[int], signals: StopSignals) -> tuple[int, ...]:
        """Runs the seeds, begins none after a signal, and returns those that failed."""
        waiting, passed_on = deque(seeds), None
        try:
            with woken_by_signals() as woken:
                while self._running or (waiting and signals.received is None):
                    while waiting and len(self._running) < self._parallel and signals.received is None:
                        self._start(waiting.popleft())
                    if signals.received is not None and signals.received != passed_on:
                        passed_on = signals.received
                        self._say(f"{passed_on.name}: the runs save and stop")
                        self._send(passed_on)
                    self._wait(woken)
                    self._take_ended()
                    self._tell()
        except BaseException as error:
            self._send(error.signal if isinstance(error, Interrupted) else Signals.SIGTERM)
            raise
        finally:
            for started in self._running:
                started.process.wait()
        return tuple(self._failed)

    def _start(self, seed: int) -> None:
        slots = {started.slot for started in self._running}
        slot = next(slot for slot in range(self._parallel) if slot not in slots)
        run_dir, output = self._group.run_dir(seed), self._group.output(seed)
        arguments = ["train", str(self._group.settings), "--seed", str(seed), "--run-dir", str(run_dir)]
        arguments += ["--resume", "auto"]
        with _share(slot, self._parallel), output.open("ab") as file:
            # Held by each run, so that a command after this one's death waits until all have saved.
            held = self._lock.fileno()
            process = self._template.fork(f"seed {seed}", arguments, file.fileno(), held) or _start(
                arguments, file, held
            )
        end = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
        self._running.append(_Started(seed, slot, process, end))
        self._say(f"seed {seed} {'goes on' if holds_run(run_dir) else 'begins'}: {run_dir}")

    def _wait(self, woken: int) -> None:
        """Waits until a run has ended, a signal has come or the next line is due."""
        left = max(0.0, self._next_line - time.monotonic())
        ends = [started.end for started in self._running if started.end is not None]
        if len(ends) < len(self._running):
            left = min(left, _RETRY_SECONDS)
        if woken in wait([woken, *ends], left):
            os.read(woken, 512)

    def _send(self, number: Signals) -> None:
        for started in self._running:
            started.process.send_signal(number)

    def _take_ended(self) -> None:
        for started in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(started)
            if started.end is not None:
                os.close(started.end)
            status, seed = started.process.returncode, started.seed
            if status in (0, *(128 + number for number in STOP_SIGNALS)):
                events = read_events(self._group.run_dir(seed))
                self._say(f"seed {seed} ended: {events[-1].text if events else 'before it had begun'}")
                continue
            self._failed.append(seed)
            output = self._group.output(seed)
            last = "\n".join(f"  {line}" for line in tail(output, _NEWEST_BYTES)[-_LAST_WORDS:])
            self._say(f"seed {seed} failed with exit status {status}; the end of {output}:\n{last}")

    def _tell(self) -> None:
        """Says how the runs stand, at intervals that grow to a minute."""
        if time.monotonic() < self._next_line or not self._running:
            return
        self._gap_seconds = min(1.5 * self._gap_seconds, _MAX_GAP_SECONDS)
        self._next_line = time.monotonic() + self._gap_seconds
        self._say(" | ".join(self._state(started.seed) for started in self._running))

    def _state(self, seed: int) -> str:
        lines = read_objects(self._group.run_dir(seed) / "metrics.jsonl", _NEWEST_BYTES)
        if not lines:
            return f"seed {seed} starts"
        snapshot = snapshot_of(lines[-1])
        share, _ = progress(snapshot, self._stop)
        done = "" if share is None else f" {share:.0%}"
        steps, updates = short(snapshot.env_steps_total), short(snapshot.updates_total)
        return (
            f"seed {seed}{done}, steps {steps}, updates {updates}, return {short(snapshot.headline_return)}"
        )
