"""The base class of roles, which an engine spawns, and their common context.

Owns the logs of roles and their streams of random numbers; must not import torch or ray.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.core import EnvSpec
from cluster.control.timeouts import chunk_seconds
from cluster.engines.process_info import ProcessInfo, process_info
from cluster.engines.signals import leave_signals_to_driver
from cluster.engines.stacks import answer_stack_requests
from cluster.metrics.usage import UsageMeter
from cluster.record.logs import LogSource
from cluster.record.output import ProcessLog
from cluster.settings.resolved import ResolvedConfig


@dataclass(frozen=True)
class RoleContext:
    """The arguments that every role of a run takes: its name, the config, the environment and folders.

    replay: the folder below which shards keep their journals. source: set where the role has a process to
    itself; its output then goes to the role's log.
    """

    name: str
    config: ResolvedConfig
    spec: EnvSpec
    logs: Path
    replay: Path
    source: LogSource | None = None


class Role:
    """Sets up the log of a role and its handler for stack requests, and reports its process."""

    def __init__(self, context: RoleContext) -> None:
        self._log = None
        if context.source:
            leave_signals_to_driver()
            self._log = ProcessLog(context.source, context.logs)
            # Not in the driver's process, which stops by this signal and can look at its own stack.
            answer_stack_requests(context.logs, context.name)
        relays_log = self._log is not None and self._log.relays
        self._process_info = dataclasses.replace(process_info(), relays_log=relays_log)
        # In the serial runtime all roles share the coordinator's process, which is measured there.
        self._usage = UsageMeter() if context.source else None
        """Measures CPU time and memory of this role's own process, at most once a second."""
        run, actors = context.config.run, context.config.actors
        self._chunk_seconds = (
            chunk_seconds(run.frozen_seconds, actors.chunk_deadline_seconds) if context.source else math.inf
        )
        """How long a chunk may take; without a limit where chunks must not depend on the clock."""

    def process_info(self) -> ProcessInfo:
        """The role's process, machine and code. The first answer says that the role is up."""
        return self._process_info

    def take_log(self) -> str:
        """Log lines that wait because the run's folder is not on this machine; each is returned once."""
        return self._log.take() if self._log else ""

    def close(self) -> None:
        """Closes what the role holds open; a role that holds nothing does nothing."""


@dataclass(frozen=True)
class Seeds:
    """The streams of random numbers of a run: one for each (role, index, incarnation)."""

    run_seed: int

    def stream(self, role: str, index: int, incarnation: int) -> np.random.SeedSequence:
        """A restarted role never repeats an old stream, because its incarnation is part of the key."""
        roles = ("actor", "shard", "learner")
        return np.random.SeedSequence(self.run_seed, spawn_key=(roles.index(role), index, incarnation))
