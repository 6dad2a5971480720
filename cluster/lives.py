"""The lives of a run: each begins with new roles, at the start of the run or at a checkpoint.

Owns the parts that every life creates anew; must not import ray or torch.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from actors.core import EnvSpec
from cluster.checkpoints.checkpoint import read_checkpoint
from cluster.checkpoints.resume import Resumed, restore_run
from cluster.control.evaluation import ModelSelection
from cluster.coordinator import Coordinator
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.engines.engine import Engine, EngineDied
from cluster.life import Life, Outcome
from cluster.metrics.counters import Counters
from cluster.record.recorder import Recorder
from cluster.record.run_dir import RunDir
from cluster.runtime.fleet import Fleet
from cluster.runtime.run_context import RunContext
from cluster.settings.resolved import ResolvedConfig


@dataclass(frozen=True, eq=False)
class Lives:
    """Runs the lives of a run one after another. started: monotonic time at which the run's clock showed 0.

    In the serial runtime a life ends at each checkpoint and the next one begins from it, so that a run that
    was interrupted and resumed equals an uninterrupted one bit for bit.
    """

    engine: Engine
    config: ResolvedConfig
    spec: EnvSpec
    run_dir: RunDir
    recorder: Recorder
    learner_gpus: float
    started: float
    stop_requested: Callable[[], str | None]

    def run(self, resumed: Resumed | None, initial_weights: np.ndarray | None) -> Outcome:
        """Runs lives until one ends the run. initial_weights: [P] float32 for a run that is not resumed."""
        config = self.config
        counters = Counters(
            started=self.started,
            discount=config.actors.discount,
            num_actors=config.actors.num_actors,
        )
        if resumed is not None:
            counters.resume(resumed.manifest.run.counters)
        counters.begin_interval(time.monotonic())
        diagnosis = Diagnosis(config)
        while True:
            context = self._context(resumed, counters)
            try:
                coordinator = Coordinator(
                    context, diagnosis, resumed=resumed, initial_weights=initial_weights
                )
                ended = Life(context, coordinator, self.stop_requested).run()
            finally:
                with suppress(EngineDied):  # all that could be saved is saved
                    context.fleet.close_environments()
            if isinstance(ended, Outcome):
                return ended
            self.engine.end_roles()
            checkpoint = read_checkpoint(self.run_dir.checkpoints / ended.name)
            resumed = restore_run(self.run_dir.path, checkpoint, config)

    def _context(self, resumed: Resumed | None, counters: Counters) -> RunContext:
        """Creates the parts of the next life and spawns its roles."""
        before = resumed.manifest.run if resumed else None
        if before is not None:
            counters.resume(before.counters)
        fleet = Fleet(
            self.engine,
            self.config,
            self.spec,
            self.run_dir.logs,
            self.run_dir.replay,
            learner_gpus=self.learner_gpus,
            run_started_at=time.time() - (time.monotonic() - self.started),
            incarnations=resumed.incarnations if resumed else {},
            note_incarnations=self.recorder.incarnations,
        )
        selection = ModelSelection(
            self.config.evaluation, self.config.stop.target_return, before.selection if before else None
        )
        return RunContext(
            self.engine, self.config, self.run_dir, self.recorder, fleet, counters, selection, self.started
        )
