"""The Python API: train a configuration, load what a run learned (load_policy).

Owns the life of a run from checked config to closed engine; ray is imported only when a runtime asks for it.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from actors.core import EnvSpec
from actors.envs import probe
from cluster.config import ConfigError, RunConfig, check
from cluster.coordinator import Coordinator, Outcome
from cluster.engine import Engine
from cluster.evaluate import GreedyPolicy, load_policy
from cluster.machine import this_machine
from cluster.metrics import MetricsServer, Snapshot
from cluster.plan import make_plan, refuse_what_cannot_fit
from cluster.resolve import resolve
from cluster.run_dir import RunDir, refuse_unusable
from cluster.signals import StopSignals
from cluster.threads import available_cores
from cluster.view import Headline, View, make_view

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

    config: RunConfig
    spec: EnvSpec


def prepare(config: RunConfig) -> Prepared:
    """Checks a config against itself and its environment and fills in what it leaves open.

    Raises:
        ConfigError, EnvError: naming value and cure. Both are ValueErrors.
    """
    check(config)
    spec = probe(config.env)
    config = resolve(config, spec, available_cores())
    check(config)
    return Prepared(config, spec)


def default_run_dir(config: RunConfig) -> Path:
    """runs/ENV-TIME in the current folder."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", config.env.id).strip("-").lower()
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def train(config: RunConfig, run_dir: Path | None = None, *, view: Callable[..., View] = make_view) -> Result:
    """Trains until a stop condition, SIGINT or SIGTERM; the run directory then holds everything.

    Args:
        config: may leave fields open (None); the resolved one is saved as config.yaml.
        run_dir: must not hold a run; default runs/ENV-TIME.
        view: builds what shows progress; see cluster.view.make_view.

    Raises:
        ConfigError, EnvError: before any process starts.
        RunFailed: the run could not go on; what was learned is in the run directory.
    """
    started = time.monotonic()
    run_dir = run_dir or default_run_dir(config)
    refuse_unusable(run_dir)
    prepared = prepare(config)
    config = prepared.config
    plan = make_plan(config, prepared.spec, this_machine())
    refuse_what_cannot_fit(plan)
    newest: list[Callable[[], Snapshot | None]] = []
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        server = MetricsServer(
            config.metrics.host, config.metrics.port, lambda: newest[0]() if newest else None
        )
        stack.enter_context(closing(server))
        headline = Headline(config.env.id, config.run.runtime, run_dir, server.url, plan.short)
        observer = stack.enter_context(view(headline, config.stop))
        engine, learner_gpus = _start_engine(config, stack)
        signals.reinstall()
        stack.callback(signals.ignore)
        directory = stack.enter_context(closing(RunDir.create(run_dir.absolute(), config, prepared.spec)))
        coordinator = Coordinator(
            engine,
            config,
            prepared.spec,
            directory,
            observer,
            learner_gpus=learner_gpus,
            stop_requested=signals.request,
            started=started,
        )
        newest.append(lambda: coordinator.newest)
        outcome = coordinator.run()
    return Result(run_dir, outcome, time.monotonic() - started, signals.received)


def _start_engine(config: RunConfig, stack: ExitStack) -> tuple[Engine, float]:
    """The engine of the config's runtime, closed by stack; and the GPUs that its learner may have."""
    if config.run.runtime == "serial":
        from cluster.serial_engine import SerialEngine

        serial = SerialEngine()
        stack.callback(serial.close)
        return serial, 0.0
    from cluster.ray_engine import RayEngine

    if config.run.runtime == "cluster" and "RAY_ADDRESS" not in os.environ:
        raise ConfigError(
            "run.runtime is cluster, but RAY_ADDRESS is not set: set it to the head's host:port, "
            "or take the local runtime, which starts a Ray of its own"
        )
    engine = RayEngine(private=config.run.runtime == "local")
    stack.callback(engine.close)
    try:
        engine.start()
    except OSError as error:
        if config.run.runtime == "local":
            raise
        raise ConfigError(f"RAY_ADDRESS is {os.environ['RAY_ADDRESS']}: {error}") from error
    wants_gpu = config.learner.device != "cpu" and engine.gpus >= 1.0
    return engine, 1.0 if wants_gpu else 0.0
