"""The objects that coordinator, supervisor and recovery share in one life of a run.

Owns no behavior; must not import torch or ray.
"""

from dataclasses import dataclass

from cluster.control.evaluation import ModelSelection
from cluster.engines.engine import Engine
from cluster.metrics.counters import Counters
from cluster.record.recorder import Recorder
from cluster.record.run_dir import RunDir
from cluster.runtime.fleet import Fleet
from cluster.settings.resolved import ResolvedConfig


@dataclass(frozen=True, eq=False)
class RunContext:
    """The parts of one life of a run. started: monotonic time at which the run's clock showed 0."""

    engine: Engine
    config: ResolvedConfig
    run_dir: RunDir
    recorder: Recorder
    fleet: Fleet
    counters: Counters
    selection: ModelSelection
    started: float
