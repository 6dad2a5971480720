"""The Python API: train a configuration, load what a run learned (load_policy).

Owns the life of a run from checked config to closed engine; ray is imported only when a runtime asks for it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from actors.core import EnvSpec
from actors.envs.make import probe
from cluster.checkpoints.checkpoint import checkpoint_folders, read_checkpoint
from cluster.checkpoints.resume import Resumed, changes, go_on, newest_good_checkpoint, saved_config
from cluster.control.evaluation import ModelSelection
from cluster.coordinator import Coordinator, Outcome
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.engines.engine import Engine
from cluster.engines.machine import this_machine
from cluster.engines.placement import Claims, Placement, place
from cluster.engines.signals import StopSignals
from cluster.engines.threads import available_cores
from cluster.metrics.counters import Counters
from cluster.policies.initial_weights import read_initial_weights
from cluster.policies.playback import GreedyPolicy
from cluster.policies.saved_policy import load_policy
from cluster.record.events import EventKind
from cluster.record.logs import SerialLogs
from cluster.record.prometheus import MetricsServer
from cluster.record.recorder import NewestSnapshot, Recorder
from cluster.record.run_dir import RunDir, holds_run, read_config, read_spec, refuse_unusable
from cluster.record.scrape_targets import advertised, targets_folder
from cluster.record.tensorboard import require_tensorboard
from cluster.runtime.failure import RunFailed
from cluster.runtime.fleet import Fleet
from cluster.runtime.run_context import RunContext
from cluster.settings.config import ConfigError, RunConfig, check
from cluster.settings.plan import Plan, make_claims, make_plan, refuse_what_cannot_fit
from cluster.settings.resolve import resolve
from cluster.settings.resolved import ResolvedConfig
from cluster.show.status import announce, status_document
from cluster.show.view import Headline, View, make_view

Resume = Literal["never", "must", "auto"]

if TYPE_CHECKING:
    from cluster.engines.ray_engine import RayEngine

__all__ = ["GreedyPolicy", "Prepared", "Result", "load_policy", "prepare", "train"]


@dataclass(frozen=True)
class Result:
    """What a run delivered. signal is set if one ended it."""

    run_dir: Path
    outcome: Outcome
    seconds: float
    signal: signal.Signals | None


@dataclass(frozen=True)
class Prepared:
    """A run that can start: nothing is open in config, and spec is its environment's."""

    config: ResolvedConfig
    spec: EnvSpec


def prepare(config: RunConfig) -> Prepared:
    """Checks a config against itself and its environment and fills in what it leaves open.

    Raises:
        ConfigError, EnvError: naming value and cure. Both are ValueErrors.
    """
    check(config)
    spec = probe(config.env)
    resolved = resolve(config, spec, available_cores(), on_cluster="RAY_ADDRESS" in os.environ)
    check(resolved)
    return Prepared(resolved, spec)


def default_run_dir(config: RunConfig) -> Path:
    """runs/ENV-TIME in the current folder; in the home folder where the current one is a copy made by Ray."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", config.env.id).strip("-").lower()
    # To the microsecond: two runs that begin together must not share a folder.
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    return (Path.home() if is_shipped_copy(Path.cwd()) else Path()) / "runs" / name


def ask_for_placement(prepared: Prepared, plan: Plan) -> Placement:
    """Where the roles of a run would go on the cluster of RAY_ADDRESS now; starts none of them.

    Raises:
        ConfigError: where there is no such cluster.
    """
    with closing(_ray_engine(prepared.config)) as engine:
        gpus = _learner_gpus(prepared.config, engine.gpus)
        return place(make_claims(prepared.config, prepared.spec, plan, gpus), engine.nodes())


def is_shipped_copy(folder: Path) -> bool:
    """Whether Ray made this folder for a job, out of --working-dir; it goes when Ray needs the room."""
    return "working_dir_files" in folder.absolute().parts


def train(
    config: RunConfig,
    run_dir: Path | None = None,
    *,
    resume: Resume = "never",
    view: Callable[..., View] = make_view,
) -> Result:
    """Trains until a stop condition, SIGINT or SIGTERM; the run directory then holds everything.

    Args:
        config: may leave fields open (None); the resolved one is saved as config.yaml.
        run_dir: must not hold a run, unless that is to be resumed; default: see default_run_dir.
        resume: "must" goes on from the newest good checkpoint in run_dir; "auto" does so if run_dir holds a
            run, and else begins one, so that a job's command can be the same after a restart.
        view: builds what shows progress; see cluster.show.view.make_view.

    Raises:
        ConfigError, EnvError: before any process starts.
        RunFailed: the run could not go on; what was learned is in the run directory.
    """
    began = time.monotonic()
    run_dir = run_dir or default_run_dir(config)
    if is_shipped_copy(run_dir):
        raise ConfigError(
            f"run directory {run_dir}: lies in the copy of the code that Ray made for this job and will "
            "delete; give an absolute path, on storage that outlives the machine"
        )
    goes_on = resume != "never" and (resume == "must" or holds_run(run_dir))
    if not goes_on:
        refuse_unusable(run_dir)
    require_tensorboard(config)
    prepared = prepare(config)
    config = prepared.config
    plan = make_plan(config, prepared.spec, this_machine())
    refuse_what_cannot_fit(plan)
    newest = NewestSnapshot()
    with ExitStack() as stack:
        start = _resume(run_dir, prepared, required=resume == "must") if goes_on else None
        if start is not None:
            stack.enter_context(closing(start.directory))
        begins = start is None or start.resumed is None
        initial = read_initial_weights(config, prepared.spec) if begins else None
        signals = stack.enter_context(StopSignals())
        run = {"run": run_dir.absolute().name, "env": config.env.id}
        server = MetricsServer(
            config.metrics.host,
            config.metrics.port,
            newest,
            {**run, "runtime": config.run.runtime, "run_dir": str(run_dir.absolute())},
            lambda: status_document(config, run_dir.absolute(), newest),
        )
        stack.enter_context(closing(server))
        # Where the folder cannot be written, Prometheus is told the address by hand.
        with suppress(OSError):
            stack.enter_context(advertised(targets_folder(), server.target, run))
        headline = Headline(config.env.id, config.run.runtime, run_dir, server.url, plan.short)
        observer = stack.enter_context(view(headline, config.stop))
        started = began - (start.resumed.manifest.run.seconds if start and start.resumed else 0.0)
        engine = _start_engine(config, stack, run_dir.absolute(), started)
        signals.reinstall()
        stack.callback(signals.ignore)
        if start is None:
            directory = RunDir.create(
                run_dir.absolute(), config, prepared.spec, initial.facts if initial else None
            )
            stack.enter_context(closing(directory))
            start = _Start(directory, None, ())
        recorder = Recorder(start.directory, (observer, newest), started)
        announce(start.directory.path, server.url)
        learner_gpus = _learner_gpus(config, engine.gpus)
        _reserve(engine, config, make_claims(config, prepared.spec, plan, learner_gpus), recorder, signals)
        for kind, note in start.notes:
            recorder.event(kind, note)
        life = _Life(
            engine,
            prepared,
            start.directory,
            recorder,
            started,
            learner_gpus,
            Counters(started=started, discount=config.actors.discount, num_actors=config.actors.num_actors),
            Diagnosis(config),
            signals.request,
        )
        outcome = _live(life, start.resumed, initial.flat if initial else None)
    return Result(run_dir, outcome, time.monotonic() - began, signals.received)


@dataclass(frozen=True, eq=False)
class _Life:
    """What all lives of a run in this process share."""

    engine: Engine
    prepared: Prepared
    directory: RunDir
    recorder: Recorder
    started: float
    learner_gpus: float
    counters: Counters
    diagnosis: Diagnosis
    stop_requested: Callable[[], str | None]

    def context(self, resumed: Resumed | None) -> RunContext:
        """The parts of the next life, whose roles are being spawned."""
        config, directory = self.prepared.config, self.directory
        before = resumed.manifest.run if resumed else None
        if before is not None:
            self.counters.resume(before.counters)
        self.counters.begin_interval(time.monotonic())
        fleet = Fleet(
            self.engine,
            config,
            self.prepared.spec,
            directory.logs,
            directory.replay,
            learner_gpus=self.learner_gpus,
            run_started_at=time.time() - (time.monotonic() - self.started),
            incarnations=resumed.incarnations if resumed else {},
        )
        selection = ModelSelection(
            config.evaluation, config.stop.target_return, before.selection if before else None
        )
        return RunContext(
            self.engine, config, directory, self.recorder, fleet, self.counters, selection, self.started
        )


def _live(life: _Life, resumed: Resumed | None, initial_weights: np.ndarray | None) -> Outcome:
    """Runs one life after another: in the serial runtime one ends at each checkpoint, the next goes on there.

    So an uninterrupted run and one that was resumed do the same, bit for bit.
    """
    while True:
        coordinator = Coordinator(
            life.context(resumed),
            life.diagnosis,
            stop_requested=life.stop_requested,
            resumed=resumed,
            initial_weights=initial_weights,
        )
        ended = coordinator.run()
        if isinstance(ended, Outcome):
            return ended
        life.engine.end_roles()
        checkpoint = read_checkpoint(life.directory.checkpoints / ended.name)
        resumed = go_on(life.directory.path, checkpoint, life.prepared.config)


@dataclass(frozen=True, eq=False)
class _Start:
    """A start of a run's command: what the run goes on from, and what to say of it."""

    directory: RunDir
    resumed: Resumed | None
    notes: tuple[tuple[EventKind, str], ...]


def _resume(run_dir: Path, prepared: Prepared, *, required: bool) -> _Start:
    """Prepares a run's folder for going on. Raises ConfigError where it cannot, before anything is changed.

    Where no checkpoint was taken yet the run begins anew, unless one is required.
    """
    checkpoints = run_dir / "checkpoints"
    read_config(run_dir)
    if not checkpoint_folders(checkpoints) and not required:
        directory = RunDir.reopen(run_dir.absolute(), prepared.config, None, {})
        # Rows without a learner's state that belongs to them.
        shutil.rmtree(run_dir / "replay", ignore_errors=True)
        note = "resumed before its first checkpoint: begins anew"
        return _Start(directory, None, (("info", note),))
    if (spec := read_spec(run_dir)) != prepared.spec:
        raise ConfigError(
            f"{run_dir}: the environment was {spec}, it now is {prepared.spec}; a run goes on "
            "with its own environment only"
        )
    cut, problems = newest_good_checkpoint(checkpoints)
    changed = changes(saved_config(cut.manifest), prepared.config)
    given = {change.name: change.given for change in changed}
    directory = RunDir.reopen(run_dir.absolute(), prepared.config, cut.manifest.number, given)
    notes: list[tuple[EventKind, str]] = [
        ("warning", f"{problem}; an older checkpoint is taken") for problem in problems
    ]
    if changed:
        notes.append(("info", "changed since: " + ", ".join(map(str, changed))))
    notes.append(("info", f"resumed from checkpoint {cut.manifest.number}, version {cut.manifest.version:,}"))
    return _Start(directory, go_on(run_dir, cut, prepared.config), tuple(notes))


def _start_engine(config: ResolvedConfig, stack: ExitStack, run_dir: Path, started: float) -> Engine:
    """The engine of the config's runtime, closed by stack."""
    if config.run.runtime != "serial":
        return stack.enter_context(closing(_ray_engine(config)))
    from cluster.engines.serial_engine import SerialEngine

    run_started_at = time.time() - (time.monotonic() - started)
    logs = SerialLogs(run_dir / "logs", run_started_at)
    return stack.enter_context(closing(SerialEngine(logs.output_of)))


def _ray_engine(config: ResolvedConfig) -> RayEngine:
    """A Ray of its own, or the cluster of RAY_ADDRESS, started or joined. Raises ConfigError."""
    from cluster.engines.ray_engine import RayEngine

    if config.run.runtime == "cluster" and "RAY_ADDRESS" not in os.environ:
        raise ConfigError(
            "run.runtime is cluster, but RAY_ADDRESS is not set: set it to the head's host:port, "
            "or take the local runtime, which starts a Ray of its own"
        )
    private = config.run.runtime == "local"
    with ExitStack() as unless_started:
        engine = unless_started.enter_context(closing(RayEngine(private=private)))
        try:
            engine.start()
        except OSError as error:
            if private:
                raise
            raise ConfigError(f"RAY_ADDRESS is {os.environ['RAY_ADDRESS']}: {error}") from error
        unless_started.pop_all()
    return engine


def _reserve(
    engine: Engine,
    config: ResolvedConfig,
    claims: Claims,
    recorder: Recorder,
    signals: StopSignals,
) -> None:
    """Gets room for the run on the cluster. Raises RunFailed where there is none in time."""

    def say(text: str) -> None:
        for line in text.splitlines():
            recorder.info(line)

    try:
        engine.reserve(
            claims, wait_seconds=config.run.wait_for_cluster_seconds, say=say, stopped=signals.request
        )
    except TimeoutError as error:
        recorder.event("failed", str(error))
        raise RunFailed(str(error)) from None


def _learner_gpus(config: ResolvedConfig, gpus: float) -> float:
    """GPUs that the learner claims where there are that many; a cluster may yet add one that is asked for."""
    if config.run.runtime == "cluster" and config.learner.device.startswith("cuda"):
        return 1.0
    return 1.0 if config.learner.device != "cpu" and gpus >= 1.0 else 0.0
