"""The Python API: train a configuration, load what a run learned (load_policy).

Owns the life of a run from checked config to closed engine; ray is imported only when a runtime asks for it.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from actors.config import import_path
from actors.core import EnvSpec
from actors.envs.make import imports_an_environment
from actors.envs.trial import told, try_out
from cluster.checkpoints.resume import OpenedRun, Resumed, reopen
from cluster.control.ends import is_own_end, is_target
from cluster.engines.engine import Engine
from cluster.engines.machine import cluster_address, peak_bytes, this_machine
from cluster.engines.own_code import OWN_ROOT
from cluster.engines.placement import Claims, Placement, place
from cluster.engines.process_engine import ForkServers, ProcessEngine, can_run
from cluster.engines.process_info import another_checkout
from cluster.engines.signals import StopSignals
from cluster.engines.temp_folder import is_too_long
from cluster.engines.threads import available_cores
from cluster.life import Outcome
from cluster.lives import Lives
from cluster.policies.initial_weights import read_initial_weights
from cluster.policies.playback import GreedyPolicy
from cluster.policies.saved_policy import load_policy
from cluster.record.callbacks import Callback
from cluster.record.events import read_events
from cluster.record.known_runs import remember_run
from cluster.record.line_file import read_objects
from cluster.record.prometheus import MetricsServer
from cluster.record.recorder import NewestSnapshot, Recorder
from cluster.record.run_dir import RunDir, holds_run, read_config, read_spec, refuse_unusable
from cluster.record.scrape_targets import advertised, home_folder, targets_folder
from cluster.record.serial_logs import SerialLogs
from cluster.record.trackers import KEEPING_FILES, TrackerProcess, require_trackers
from cluster.runtime.failure import RunFailed
from cluster.runtime.preload import fork_servers
from cluster.settings.automatic import keeping_choices, most_lanes, reasons, step_limit, step_limit_note
from cluster.settings.config import ConfigError, RunConfig, check
from cluster.settings.load_config import load_config
from cluster.settings.notes import setting_notes
from cluster.settings.plan import Plan, make_claims, make_plan, require_fit
from cluster.settings.resolve import network_spec, resolve
from cluster.settings.resolved import ResolvedConfig, preset_text
from cluster.settings.tree import in_yaml
from cluster.show.status import announce, snapshot_of, status_document
from cluster.show.view import Headline, View, make_view, shown
from cluster.wording import quantity
from learner.config import is_import_path

Resume = Literal["never", "must", "auto"]
ALREADY_ENDED = "this run has already ended"

if TYPE_CHECKING:
    from cluster.engines.ray_engine import RayEngine

__all__ = ["GreedyPolicy", "Prepared", "Result", "ended", "load_policy", "prepare", "train"]


@dataclass(frozen=True)
class Result:
    """The result of a run. signal: the signal that ended it, if one did."""

    run_dir: Path
    outcome: Outcome
    seconds: float
    signal: signal.Signals | None


@dataclass(frozen=True)
class SavedRun:
    """The environment and the config of a run that is resumed, as its directory has them."""

    spec: EnvSpec
    config: ResolvedConfig


@dataclass(frozen=True)
class Prepared:
    """A configuration in which every setting is chosen, and the properties of its environment.

    notes: sentences about both that the run's user should read. reasons: why automatic settings are as they
    are.
    """

    config: ResolvedConfig
    spec: EnvSpec
    notes: tuple[str, ...]
    reasons: tuple[str, ...] = ()


def prepare(config: RunConfig, saved: SavedRun | None = None) -> Prepared:
    """Checks a config, probes its environment, and chooses the settings that it leaves out (None).

    saved: the run that is resumed: its environment's numbers keep their meaning, and what was chosen for it
    stays.

    Raises:
        ConfigError, EnvError: the message names value and cure. Both are ValueErrors.
    """
    check(config)
    _refuse_another_checkout()
    if saved is not None:
        config = keeping_choices(config, saved.config)
    before = peak_bytes()
    probed = try_out(config.env)
    lanes = most_lanes(peak_bytes() - before, this_machine().available_bytes)
    notes, step_seconds = list(probed.notes), probed.step_seconds
    limit = step_limit(probed.spec, probed.episodes_end) if saved is None else None
    if limit is not None:
        probed = try_out(replace(config.env, max_episode_steps=limit))
        notes.append(step_limit_note(config.env.id, limit))
    config, spec = replace(config, env=probed.config), probed.spec
    if saved is not None:
        spec = spec.read_as(saved.spec)
    resolved = resolve(
        config,
        spec,
        available_cores(),
        on_cluster=bool(cluster_address()),
        step_seconds=step_seconds,
        most_lanes=lanes,
    )
    check(resolved)
    _try_network(resolved, spec)
    notes += setting_notes(resolved, spec)
    return Prepared(resolved, spec, tuple(notes), tuple(reasons(config, resolved, step_seconds)))


def _refuse_another_checkout() -> None:
    """Raises ConfigError if the current folder is in a checkout whose code this process does not run."""
    checkout = another_checkout(Path.cwd())
    if checkout is not None:
        raise ConfigError(
            f"this is the qfleet of {OWN_ROOT}, started in a checkout with other code, {checkout}: run that "
            f"code with `cd {shlex.quote(str(checkout))} && python -m qfleet …`, or start from a folder "
            "outside of it"
        )


def _try_network(config: ResolvedConfig, spec: EnvSpec) -> None:
    """Raises ConfigError if the user's own network cannot be built, or the device is not there.

    Loads torch for these only; on a cluster, only the machine that learns knows its devices.
    """
    device = config.learner.device
    if device.startswith("cuda") and config.run.runtime != "cluster":
        import torch

        there = torch.cuda.device_count()
        if int(device.partition(":")[2] or 0) >= there:
            raise ConfigError(
                f"learner.device is {device}, but torch sees {quantity(there, 'GPU')} on this machine; "
                "give auto or cpu"
            )
    if is_import_path(config.learner.network):
        import torch

        from learner.networks.build import build_network

        try:
            with torch.random.fork_rng(devices=[]):
                build_network(network_spec(spec), config.learner)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        except Exception as error:
            raise ConfigError(
                f"learner.network is {config.learner.network}, which raised {told(error)}"
            ) from error


def default_run_dir(config: RunConfig) -> Path:
    """runs/ENV-TIME in the current folder, or in the home folder if the current one is a copy made by Ray.

    Raises ConfigError if this user has no home folder then.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", config.env.id).strip("-").lower()
    # Microseconds keep two runs that begin in the same second apart.
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    try:
        return (home_folder() if is_ray_working_dir(Path.cwd()) else Path()) / "runs" / name
    except FileNotFoundError as error:
        raise ConfigError(f"{error}: give the run's folder with --run-dir") from error


def ask_for_placement(prepared: Prepared, plan: Plan) -> Placement:
    """Asks the cluster of RAY_ADDRESS where the roles of a run would be placed now; starts no role.

    Raises:
        ConfigError: RAY_ADDRESS is not set, or no cluster answers there.
    """
    with closing(_ray_engine(prepared.config)) as engine:
        gpus = _learner_gpus(prepared.config, engine.gpus)
        return place(make_claims(prepared.config, prepared.spec, plan, gpus), engine.nodes())


def is_ray_working_dir(folder: Path) -> bool:
    """Whether the folder is in a copy of --working-dir that Ray made for a job and may delete."""
    return "working_dir_files" in folder.absolute().parts


def train(
    source: RunConfig | Path | str | Callable[..., Any],
    run_dir: Path | str | None = None,
    *,
    seed: int | None = None,
    settings: Mapping[str, object] = MappingProxyType({}),
    resume: Resume = "never",
    callbacks: Sequence[Callback] = (),
    view: Callable[..., View] = make_view,
    servers: ForkServers | None = None,
) -> Result:
    """Trains until a stop condition, SIGINT, SIGTERM or SIGHUP; the run directory then holds everything.

    Args:
        source: an environment id, "package.module:factory" or a YAML file, as in the command; a class or
            function that makes an environment; or the config that load_config makes of one. Settings that it
            leaves out are chosen, and the resolved config is saved as config.yaml.
        seed: run.seed.
        settings: name -> value, such as {"learner.batch_size": 64}; `qfleet settings` lists all. Classes and
            functions stand for their import paths, as in {"learner.network": MyNetwork}.
        run_dir: must not hold a run unless `resume` allows it; default: see default_run_dir.
        resume: "must" continues from the newest good checkpoint in run_dir; "auto" does so if run_dir holds a
            run and begins a new one otherwise, so that a job can be restarted by the same command. A run that
            has ended by itself goes on only with another limit or target.
        callbacks: called with each event of the run (see cluster.record.run_events) and its RunControl.
        view: makes the display of the run's progress; see cluster.show.view.make_view.
        servers: fork the roles of the local runtime; None: its own, started when they are needed.

    Raises:
        ConfigError, EnvError: before any process starts.
        RunFailed: the run could not continue; the run directory holds everything saved until then.
    """
    began = time.monotonic()
    config = _config(source, dict(settings) if seed is None else {**settings, "run.seed": seed})
    run_dir = _lasting(Path(run_dir) if run_dir is not None else default_run_dir(config))
    goes_on = resume == "must" or (resume == "auto" and holds_run(run_dir))
    if not goes_on:
        refuse_unusable(run_dir)
    require_trackers(config)
    prepared = prepare(config, SavedRun(read_spec(run_dir), read_config(run_dir)) if goes_on else None)
    resolved, spec, folder = prepared.config, prepared.spec, run_dir.absolute()
    if goes_on and (end := ended(run_dir, resolved)) is not None:
        return Result(run_dir, end, end.final.run_seconds, None)
    plan = make_plan(resolved, spec, this_machine())
    require_fit(plan)
    with ExitStack() as stack:
        start = reopen(run_dir, resolved, spec, required=resume == "must") if goes_on else None
        if start is not None:
            stack.enter_context(closing(start.run_dir))
        resumed = start.resumed if start else None
        initial = None if resumed else read_initial_weights(resolved, spec)
        signals = stack.enter_context(StopSignals())
        newest = NewestSnapshot()
        started = began - (resumed.manifest.run.seconds if resumed else 0.0)
        with signals.held():
            server = _serve_metrics(resolved, folder, newest, stack)
            headline = Headline(
                resolved.env.id, resolved.run.runtime, run_dir, server.url, plan.short, preset_text(resolved)
            )
            display = stack.enter_context(shown(view(headline, resolved.stop)))
            engine = _start_engine(resolved, stack, folder, started, servers or fork_servers())
        stack.callback(signals.ignore)
        gpus = _learner_gpus(resolved, engine.gpus)
        if start is None:
            directory = RunDir.create(folder, resolved, spec, initial.facts if initial else None)
            start = OpenedRun(stack.enter_context(closing(directory)), None, ())
        elif resumed is None:
            start.run_dir.describe(resolved, spec, initial.facts if initial else None)
        trackers = [TrackerProcess(name, folder) for name in resolved.metrics.trackers]
        recorder = Recorder(start.run_dir, (display, newest), started, callbacks, trackers)
        stack.callback(recorder.abandon_trackers)
        announce(folder, server.url)
        with suppress(OSError):  # then `qfleet runs` does not know it from elsewhere
            remember_run(folder)
        _reserve(engine, resolved, make_claims(resolved, spec, plan, gpus), recorder, signals)
        _tell_beginning(start, prepared, recorder)
        asked = _either(signals.request, recorder.control.request)
        lives = Lives(engine, resolved, spec, start.run_dir, recorder, gpus, started, asked)
        outcome = _live(lives, recorder, resumed, initial.flat if initial else None)
    return Result(run_dir, outcome, time.monotonic() - began, signals.received)


def _either(*requests: Callable[[], str | None]) -> Callable[[], str | None]:
    """The first reason to stop that any of these gives, or None."""
    return lambda: next((reason for request in requests if (reason := request()) is not None), None)


def _tell_beginning(start: OpenedRun, prepared: Prepared, recorder: Recorder) -> None:
    """Records what the user of a run that begins or goes on should know, and tells callbacks and trackers."""
    folder = start.run_dir.path
    for text in _runtime_notes(prepared.config):
        recorder.info(text)
    for weakness in start.run_dir.weaknesses:
        recorder.warning(f"run directory {folder}: {weakness}")
    for reason in prepared.reasons:
        recorder.info(reason)
    for note in prepared.notes:
        recorder.warning_once(note)
    for kind, text in start.notes:
        recorder.event(kind, text)
    recorder.begin(prepared.config)


def _live(
    lives: Lives, recorder: Recorder, resumed: Resumed | None, initial_weights: np.ndarray | None
) -> Outcome:
    """Runs the lives of a run, and tells callbacks and trackers how it ended. Raises RunFailed."""
    try:
        outcome = lives.run(resumed, initial_weights)
    except RunFailed as failure:
        recorder.end(str(failure), failed=True)
        raise
    if KEEPING_FILES & {*lives.config.metrics.trackers}:
        _write_report(lives.run_dir.path, recorder)
    recorder.end(outcome.reason, failed=False)
    return outcome


def _write_report(run_dir: Path, recorder: Recorder) -> None:
    """Writes the report that trackers keep; a run whose disk is full goes on without."""
    from cluster.report.report import write_report

    try:
        write_report([run_dir])
    except ConfigError as error:
        recorder.warning(f"no report: {error}")


def _runtime_notes(config: ResolvedConfig) -> Iterator[str]:
    """What differs on this system from what the runtime promises."""
    private_ray = config.run.runtime == "ray"
    if config.run.runtime == "local" and not can_run():
        yield "this system cannot run the processes of the local runtime, so Ray runs them"
        private_ray = True
    if private_ray and is_too_long():
        yield f"the path of {gettempdir()} (TMPDIR) is too long for sockets, so Ray's are in /tmp"


def _config(source: RunConfig | Path | str | Callable[..., Any], settings: Mapping[str, object]) -> RunConfig:
    """The config to train. Raises ConfigError."""
    if imports_an_environment():
        raise ConfigError(
            "train() was called by the module of an environment, which every process imports; put the call "
            'below `if __name__ == "__main__":`'
        )
    if not isinstance(source, RunConfig):
        try:
            plain = json.loads(json.dumps(dict(settings), default=_path_of))
            given = [f"{name}={in_yaml(value, flow=True)}" for name, value in plain.items()]
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return load_config(source, given)
    if settings:
        raise ConfigError(f"a RunConfig has its settings; give {', '.join(settings)} to load_config")
    return source


def _path_of(value: object) -> str:
    """The import path of a class or function, as JSON's encoder asks for what it does not know."""
    if callable(value):
        return import_path(value)
    raise ValueError(f"{value!r} is no setting: give a number, text, list, dict, class or function")


def _lasting(run_dir: Path) -> Path:
    """The run directory. Raises ConfigError if Ray will delete it."""
    if is_ray_working_dir(run_dir):
        raise ConfigError(
            f"run directory {run_dir}: lies in the copy of the code that Ray made for this job and will "
            "delete; give an absolute path, on storage that outlives the machine"
        )
    return run_dir


def ended(run_dir: Path, config: ResolvedConfig) -> Outcome | None:
    """The end of a run that has ended by itself and gets no other limit or target; None if it goes on."""
    events = read_events(run_dir)
    lines = read_objects(run_dir / "metrics.jsonl")
    if not events or events[-1].kind != "ended" or not is_own_end(events[-1].text) or not lines:
        return None
    if config.stop != read_config(run_dir).stop:
        return None
    final, reason = snapshot_of(lines[-1]), events[-1].text
    return Outcome(
        reason=f"{ALREADY_ENDED}: {reason}",
        solved=is_target(reason),
        best_version=final.best_version,
        best_return_mean=final.best_return_mean,
        final=final,
        restarts=final.restarts_total,
    )


def _serve_metrics(
    config: ResolvedConfig, run_dir: Path, newest: NewestSnapshot, stack: ExitStack
) -> MetricsServer:
    """Serves the run's metrics until stack closes, and adds their address to Prometheus's targets."""
    run = {"run": run_dir.name, "env": config.env.id}
    server = MetricsServer(
        config.metrics.host,
        config.metrics.port,
        newest,
        {**run, "runtime": config.run.runtime, "run_dir": str(run_dir)},
        lambda: status_document(config, run_dir, newest),
    )
    stack.enter_context(closing(server))
    # If there is no such folder or it cannot be written, users add the address to Prometheus themselves.
    with suppress(OSError):
        stack.enter_context(advertised(targets_folder(), server.target, run))
    return server


def _start_engine(
    config: ResolvedConfig, stack: ExitStack, run_dir: Path, started: float, servers: ForkServers
) -> Engine:
    """The engine of the config's runtime, closed by stack."""
    if config.run.runtime == "local" and can_run():
        local = stack.enter_context(closing(ProcessEngine(servers)))
        local.start()
        return local
    if config.run.runtime != "serial":
        return stack.enter_context(closing(_ray_engine(config)))
    from cluster.engines.serial_engine import SerialEngine

    run_started_at = time.time() - (time.monotonic() - started)
    logs = SerialLogs(run_dir / "logs", run_started_at)
    return stack.enter_context(closing(SerialEngine(logs.output_of)))


def _ray_engine(config: ResolvedConfig) -> RayEngine:
    """Starts a private Ray, or joins the cluster of RAY_ADDRESS. Raises ConfigError."""
    from cluster.engines.ray_engine import RayEngine, RayInUse

    if config.run.runtime == "cluster" and not cluster_address():
        raise ConfigError(
            "run.runtime is cluster, but RAY_ADDRESS is not set: set it to the head's host:port, "
            "or use the runtime ray, which starts its own, or local"
        )
    private = config.run.runtime != "cluster"
    with ExitStack() as unless_started:
        engine = unless_started.enter_context(closing(RayEngine(private=private)))
        try:
            engine.start()
        except RayInUse as error:
            raise ConfigError(f"run.runtime is {config.run.runtime}, but {error}") from error
        except OSError as error:
            if private:
                raise
            raise ConfigError(f"RAY_ADDRESS is {cluster_address()}: {error}") from error
        unless_started.pop_all()
    return engine


def _reserve(
    engine: Engine,
    config: ResolvedConfig,
    claims: Claims,
    recorder: Recorder,
    signals: StopSignals,
) -> None:
    """Reserves the run's resources on a cluster. Raises RunFailed if they do not become free in time."""

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
    """GPUs that each rank of the learner claims; on a cluster even if an autoscaler has yet to add them.

    Raises ConfigError if there are some, but fewer than ranks.
    """
    learner = config.learner
    if config.run.runtime == "cluster" and learner.device.startswith("cuda"):
        return 1.0
    if learner.device == "cpu" or gpus < 1.0:
        return 0.0
    if gpus < learner.num_learners:
        raise ConfigError(
            f"learner.num_learners is {learner.num_learners}, each takes a GPU, and there are {gpus:g}; "
            f"give at most {gpus:g}, or learner.device=cpu"
        )
    return 1.0
