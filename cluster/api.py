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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from actors.core import EnvSpec
from actors.envs.make import probe
from cluster.checkpoints.checkpoint import checkpoint_folders, read_checkpoint
from cluster.checkpoints.resume import Resumed, changes, go_on, newest_good_checkpoint, saved_config
from cluster.coordinator import Coordinator, Outcome, RunFailed
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.engines.engine import Engine
from cluster.engines.machine import this_machine
from cluster.engines.placement import Claims, Placement, place
from cluster.engines.signals import StopSignals
from cluster.engines.threads import available_cores
from cluster.metrics.counters import Counters
from cluster.metrics.snapshot import Snapshot
from cluster.policies.initial_weights import read_initial_weights
from cluster.policies.playback import GreedyPolicy
from cluster.policies.saved_policy import load_policy
from cluster.record.events import EventKind
from cluster.record.logs import SerialLogs
from cluster.record.prometheus import MetricsServer
from cluster.record.recorder import Recorder
from cluster.record.run_dir import RunDir, holds_run, read_config, read_spec, refuse_unusable
from cluster.record.scrape_targets import advertised, targets_folder
from cluster.record.tensorboard import require_tensorboard
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
    newest: list[Callable[[], Snapshot | None]] = []
    with ExitStack() as stack:
        life = _next_life(run_dir, prepared, required=resume == "must") if goes_on else None
        if life is not None:
            stack.enter_context(closing(life.directory))
        begins = life is None or life.resumed is None
        initial = read_initial_weights(config, prepared.spec) if begins else None
        signals = stack.enter_context(StopSignals())
        run = {"run": run_dir.absolute().name, "env": config.env.id}
        server = MetricsServer(
            config.metrics.host,
            config.metrics.port,
            lambda: newest[0]() if newest else None,
            {**run, "runtime": config.run.runtime, "run_dir": str(run_dir.absolute())},
            lambda: status_document(config, run_dir.absolute(), lambda: newest[0]() if newest else None),
        )
        stack.enter_context(closing(server))
        # Where the folder cannot be written, Prometheus is told the address by hand.
        with suppress(OSError):
            stack.enter_context(advertised(targets_folder(), server.target, run))
        headline = Headline(config.env.id, config.run.runtime, run_dir, server.url, plan.short)
        observer = stack.enter_context(view(headline, config.stop))
        started = began - (life.resumed.manifest.run.seconds if life and life.resumed else 0.0)
        engine, gpus = _start_engine(config, stack, run_dir.absolute(), started)
        signals.reinstall()
        stack.callback(signals.ignore)
        if life is None:
            directory = RunDir.create(
                run_dir.absolute(), config, prepared.spec, initial.facts if initial else None
            )
            stack.enter_context(closing(directory))
            life = _Life(directory, None, ())
        recorder = Recorder(life.directory, observer, started)
        announce(life.directory.path, server.url)
        if config.run.runtime == "cluster":
            claims = make_claims(config, prepared.spec, plan, gpus)
            _reserve(engine, config, claims, recorder, signals)
        for kind, note in life.notes:
            recorder.event(kind, note)
        resumed, outcome = life.resumed, None
        counters = Counters(
            started=started, discount=config.actors.discount, num_actors=config.actors.num_actors
        )
        diagnosis = Diagnosis(config)
        while outcome is None:
            coordinator = Coordinator(
                engine,
                config,
                prepared.spec,
                life.directory,
                recorder,
                learner_gpus=gpus,
                stop_requested=signals.request,
                started=started,
                resumed=resumed,
                initial_weights=initial.flat if initial else None,
                diagnosis=diagnosis,
                counters=counters,
            )
            newest[:] = [partial(getattr, coordinator, "newest")]
            ended = coordinator.run()
            if isinstance(ended, Outcome):
                outcome = ended
            else:
                engine.close()
                resumed = go_on(run_dir, read_checkpoint(life.directory.checkpoints / ended.name), config)
    return Result(run_dir, outcome, time.monotonic() - began, signals.received)


@dataclass(frozen=True, eq=False)
class _Life:
    """One stretch of a run between two starts of its command: what it goes on from, and what to say of it."""

    directory: RunDir
    resumed: Resumed | None
    notes: tuple[tuple[EventKind, str], ...]


def _next_life(run_dir: Path, prepared: Prepared, *, required: bool) -> _Life:
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
        return _Life(directory, None, (("info", note),))
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
    return _Life(directory, go_on(run_dir, cut, prepared.config), tuple(notes))


def _start_engine(
    config: ResolvedConfig, stack: ExitStack, run_dir: Path, started: float
) -> tuple[Engine, float]:
    """The engine of the config's runtime, closed by stack; and the GPUs that its learner may have."""
    if config.run.runtime == "serial":
        from cluster.engines.serial_engine import SerialEngine

        run_started_at = time.time() - (time.monotonic() - started)
        logs = stack.enter_context(closing(SerialLogs(run_dir / "logs", run_started_at)))
        serial = SerialEngine(logs.output_of)
        stack.callback(serial.close)
        return serial, 0.0
    engine = stack.enter_context(closing(_ray_engine(config)))
    return engine, _learner_gpus(config, engine.gpus)


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
    from cluster.engines.ray_engine import RayEngine

    assert isinstance(engine, RayEngine)

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
