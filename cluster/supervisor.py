"""The supervisor: who is replaced when a role dies, hangs or takes too much memory, and for how long.

Owns the budgets of replacements and the watchdog; must not import ray or torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from actors.core import EnvRestart
from cluster.checkpoints.recovery import Recovery
from cluster.control.every import Every
from cluster.engines.engine import EngineError, ObjectLost, RoleDied, RoleOutOfMemory
from cluster.engines.stacks import end_process, request_stack, stack_of
from cluster.metrics.counters import RestartCause
from cluster.runtime.failure import RunFailed
from cluster.runtime.fleet import Member
from cluster.runtime.run_context import RunContext

ASK_MACHINES_SECONDS = 3.0
_GONE_TOGETHER_SECONDS = 30.0


class Supervisor:
    """Replaces roles within run.restarts, restarts of environments within actors.env_restarts."""

    def __init__(self, context: RunContext, recovery: Recovery, now: float) -> None:
        """now: on the monotonic clock."""
        self._context = context
        self._fleet = context.fleet
        self._recovery = recovery
        self._deaths = 0
        # For each other machine: when it last seemed to go, and which roles went with it.
        self._gone: dict[str, tuple[float, set[str]]] = {}
        self._leaving: frozenset[str] = frozenset()
        self._ask_machines = Every(ASK_MACHINES_SECONDS, now)
        self._progress = (0, 0)
        self._progress_at = now

    def look(self, now: float, *, idle: bool) -> None:
        """Looks for roles that hang, machines that leave and a run that stands still. now: monotonic.

        idle: whether nothing has completed since the last look. Raises RunFailed.
        """
        self._fleet.clock.look(now)
        if not self._context.engine.deterministic:
            self._end_frozen(now)
        if self._ask_machines.due(now):
            self._notice_leaving()
        counters = self._context.counters
        progress = (counters.shards.inserted_transitions + counters.version, self._fleet.starts)
        if progress != self._progress:
            self._progress, self._progress_at = progress, now
        elif idle and now - self._progress_at > self._context.config.run.stall_seconds:
            self._fail_stalled()

    def bury(self, dead: Member[Any], error: EngineError, now: float) -> None:
        """Replaces a role that died. Raises RunFailed where no replacement is left."""
        cause: RestartCause = "process"
        how = "died"
        if isinstance(error, RoleOutOfMemory):
            cause, how = "memory", "was ended because its machine ran out of memory"
        elif isinstance(error, ObjectLost):
            cause = "object"
        self._spend(dead, error, cause, how, now)

    def replace_actor(self, actor: Member[Any], cause: RestartCause, restart: EnvRestart) -> None:
        """Ends and replaces an actor because of its environments. Raises RunFailed as count_restarts does."""
        end_process(actor.process)
        self.count_restarts(actor, [restart])
        self._replace(actor, RoleDied(actor.name, restart.description), cause, "was ended")

    def count_restarts(self, member: Member[Any], restarts: Iterable[EnvRestart]) -> None:
        """Counts environments that were restarted. Raises RunFailed where that happened too often."""
        counters, budget = self._context.counters, self._context.config.actors.env_restarts
        for restart in restarts:
            counters.take_env_restart(restart.cause)
            left = budget - counters.env_restarts
            if left < 0:
                ends = "raised the error above" if restart.cause == "raise" else "is where that happened"
                raise RunFailed(
                    f"{restart.description}\n{member.name} {ends}; actors.env_restarts = {budget} were used "
                    "up, and the run has ended.",
                    member.name,
                )
            which = "its environments" if restart.lane is None else f"environment {restart.lane}"
            reason = restart.description.strip().splitlines()[-1]
            self._context.recorder.info(
                f"{member.name}: {which} made anew ({restart.cause}: {reason}), "
                f"{left} restarts of environments left"
            )

    def _end_frozen(self, now: float) -> None:
        """Ends and replaces a role that gives no sign of life any more."""
        frozen = self._fleet.frozen()
        if frozen is None:
            return
        member, seconds = frozen
        if member.kind == "actor":
            stacks = stack_of(member.process, self._context.run_dir.logs, member.name)
            description = f"{stacks}it did not return from a chunk for {seconds:.0f} s"
            self.replace_actor(member, "frozen", EnvRestart("hang", None, description))
            return
        # The engine would first ask a process that is stopped, and wait for its answer.
        end_process(member.process)
        error = RoleDied(member.name, f"it did not answer for {seconds:.0f} s")
        self._spend(member, error, "frozen", f"did not answer for {seconds:.0f} s and was killed", now)

    def _spend(
        self, dead: Member[Any], error: EngineError, cause: RestartCause, how: str, now: float
    ) -> None:
        """Replaces a role at the cost of one restart; roles of a machine that goes cost one together."""
        restarts = self._context.config.run.restarts
        self._deaths += not self._went_with_its_machine(dead, now)
        left = restarts - self._deaths
        if left < 0:
            raise RunFailed(
                f"{dead.name} died, and run.restarts = {restarts} replacements were used up: {error.message}",
                dead.name,
            )
        fresh = self._replace(dead, error, cause, how, f", {left} replacements left")
        fresh.machine = dead.machine  # until it is up

    def _replace(
        self, dead: Member[Any], error: EngineError, cause: RestartCause, how: str, left: str = ""
    ) -> Member[Any]:
        """Puts the next incarnation in the place of a role that is gone, and says so."""
        self._context.counters.take_restart(dead.kind, cause)
        held = self._recovery.loses(dead)
        fresh = self._fleet.replace(dead, error)
        pid = dead.process.pid if dead.process else None
        self._context.recorder.info(
            f"{dead.name} (process {pid}) {how}{held}; replaced by incarnation {fresh.incarnation}{left}"
        )
        self._recovery.replaced(fresh)
        return fresh

    def _notice_leaving(self) -> None:
        """Saves what there is before machines go that say so."""
        leaving = self._context.engine.machines_leaving()
        news, self._leaving = leaving - self._leaving, leaving
        roles = [member.name for member in self._fleet.members if member.machine in news]
        if roles:
            self._recovery.checkpoint_soon(f"a machine is about to go, with {', '.join(roles)}")

    def _went_with_its_machine(self, dead: Member[Any], now: float) -> bool:
        """Whether another role of the same other machine has just gone, and this one had not yet."""
        since, roles = self._gone.get(dead.machine, (-math.inf, set()))
        # One that never came up may have been sent to that machine before the engine knew that it is gone.
        new = not dead.is_up or dead.name not in roles
        together = new and now - since < _GONE_TOGETHER_SECONDS
        if not dead.machine or not together:
            self._gone[dead.machine] = (now, {dead.name})
            return False
        roles.add(dead.name)
        return True

    def _fail_stalled(self) -> None:
        """Has every role on this machine write its stack, and ends the run."""
        waiting = [
            f"  {member.name} (process {member.process.pid}): {len(member.in_flight)} calls in flight"
            if member.process
            else f"  {member.name}: has not come up; are there free CPUs for it?"
            for member in self._fleet.members
        ]
        # A signal handler writes the stack, so that it works while the role hangs.
        for member in self._fleet.members:
            request_stack(member.process)
        run = self._context.config.run
        raise RunFailed(
            f"nothing was inserted or learned for run.stall_seconds = {run.stall_seconds:g}:\n"
            + "\n".join(waiting)
            + f"\nThe stacks of the roles on this machine are in {self._context.run_dir.logs}."
        )
