"""The supervisor: replaces roles that die, hang or take too much memory, until the restarts are used up.

Owns the budgets of restarts and the watchdog; must not import ray or torch.
"""

import math
from collections.abc import Iterable
from typing import Any

from actors.core import EnvRestart
from cluster.checkpoints.recovery import Recovery
from cluster.control.every import Every
from cluster.engines.engine import EngineError, ObjectLost, PeerLost, RoleDied, RoleOutOfMemory
from cluster.engines.stacks import end_process, request_stack, stack_of
from cluster.metrics.counters import RestartCause
from cluster.runtime.failure import RunFailed
from cluster.runtime.member import Member
from cluster.runtime.run_context import RunContext

ASK_MACHINES_SECONDS = 3.0
_GONE_TOGETHER_SECONDS = 30.0
# Looking at a thousand roles takes as long as handling a result.
_LOOK_FOR_FROZEN_SECONDS = 0.1


class Supervisor:
    """Replaces at most run.restarts roles, and allows at most actors.env_restarts of environments."""

    def __init__(self, context: RunContext, recovery: Recovery, now: float) -> None:
        """now: on the monotonic clock."""
        self._context = context
        self._fleet = context.fleet
        self._recovery = recovery
        self._deaths = 0
        # Other machine -> when the first of its roles died, and the roles that died within 30 s of that.
        self._gone: dict[str, tuple[float, set[str]]] = {}
        self._leaving: frozenset[str] = frozenset()
        self._ask_machines = Every(ASK_MACHINES_SECONDS, now)
        self._look_for_frozen = Every(_LOOK_FOR_FROZEN_SECONDS, self._fleet.clock.seconds)
        self._progress = (0, 0, 0)
        self._progress_at = self._fleet.clock.seconds

    def look(self, now: float, *, idle: bool) -> None:
        """Checks for hung roles, machines about to leave and a stalled run. now: monotonic.

        idle: whether no call has completed since the last look. Raises RunFailed.
        """
        self._fleet.clock.look(now)
        if not self._context.engine.deterministic and self._look_for_frozen.due(self._fleet.clock.seconds):
            self._end_frozen(now)
        if self._ask_machines.due(now):
            self._notice_leaving()
        counters = self._context.counters
        progress = (
            counters.shards.inserted_transitions + counters.version,
            self._fleet.starts,
            self._recovery.slices_read,
        )
        if progress != self._progress:
            self._progress, self._progress_at = progress, self._fleet.clock.seconds
        elif idle and self._fleet.clock.seconds - self._progress_at > self._stall_seconds():
            self._fail_stalled()

    def replace_dead(self, dead: Member[Any], error: EngineError, now: float) -> None:
        """Replaces a role that died. Raises RunFailed if run.restarts are used up."""
        cause: RestartCause = "process"
        how = "died"
        if isinstance(error, RoleOutOfMemory):
            cause, how = "memory", "was ended because its machine ran out of memory"
        elif isinstance(error, PeerLost):
            how = "lost another rank"
        elif isinstance(error, ObjectLost):
            cause = "object"
        self._replace_within_budget(dead, error, cause, how, now)

    def replace_actor(self, actor: Member[Any], cause: RestartCause, restart: EnvRestart) -> None:
        """Ends and replaces an actor because of its environments. Raises RunFailed past the budget."""
        end_process(actor.process)
        self.count_env_restarts(actor, [restart])
        self._replace(actor, RoleDied(actor.name, restart.description), cause, "was ended")

    def count_env_restarts(self, member: Member[Any], restarts: Iterable[EnvRestart]) -> None:
        """Counts restarted environments. Raises RunFailed above actors.env_restarts."""
        counters, budget = self._context.counters, self._context.config.actors.env_restarts
        for restart in restarts:
            counters.take_env_restart(restart.cause)
            left = budget - counters.env_restarts
            if left < 0:
                raised = restart.cause == "raise"
                where = f"{member.name} {'raised the error above' if raised else 'had this problem'}"
                raise RunFailed(
                    f"{restart.description}\n{where}; actors.env_restarts = {budget} were used up, "
                    "and the run has ended.",
                    member.name,
                )
            which = "its environments" if restart.lane is None else f"environment {restart.lane}"
            reason = restart.description.strip().splitlines()[-1]
            self._context.recorder.info(
                f"{member.name}: {which} made anew ({restart.cause}: {reason}), "
                f"{left} restarts of environments left"
            )

    def _end_frozen(self, now: float) -> None:
        """Kills and replaces a role that has not answered within its timeout."""
        frozen = self._fleet.frozen()
        if frozen is None:
            if (slow := self._fleet.slow_at_first()) is not None:
                self._context.recorder.warning_once(
                    f"the first chunk of {slow[0].name} takes long; after {slow[1]:.0f} s it counts as hung"
                )
            return
        member, seconds = frozen
        if member.kind == "actor":
            stacks = stack_of(member.process, self._context.run_dir.logs, member.name)
            description = f"{stacks}it did not return from a chunk for {seconds:.0f} s"
            self.replace_actor(member, "frozen", EnvRestart("hang", None, description))
            return
        # Not through the engine, which would wait for an answer that a stopped process cannot give.
        for each in self._fleet.replaced_with(member):
            end_process(each.process)
        error = RoleDied(member.name, f"it did not answer for {seconds:.0f} s")
        how = f"did not answer for {seconds:.0f} s and was killed"
        self._replace_within_budget(member, error, "frozen", how, now)

    def _replace_within_budget(
        self, dead: Member[Any], error: EngineError, cause: RestartCause, how: str, now: float
    ) -> None:
        """Replaces a role and counts one restart; roles that die with their machine count as one together."""
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
        """Replaces a role by its next incarnation, and logs that."""
        self._context.counters.take_restart(dead.kind, cause)
        lost = self._recovery.note_loss(dead)
        together = len(self._fleet.replaced_with(dead))
        fresh = self._fleet.replace(dead, error)
        process = f" (process {dead.process.pid})" if dead.process else ""  # none before it is up
        what = f"all {together} ranks are replaced" if together > 1 else "replaced"
        self._context.recorder.info(
            f"{dead.name}{process} {how}{lost}; {what} by incarnation {fresh.incarnation}{left}"
        )
        self._recovery.restore_replacement(fresh)
        return fresh

    def _notice_leaving(self) -> None:
        """Requests a checkpoint if machines that run roles are about to leave."""
        leaving = self._context.engine.machines_leaving()
        news, self._leaving = leaving - self._leaving, leaving
        roles = [member.name for member in self._fleet.members if member.machine in news]
        if roles:
            self._recovery.checkpoint_soon(f"a machine is about to go, with {', '.join(roles)}")

    def _went_with_its_machine(self, dead: Member[Any], now: float) -> bool:
        """Whether another role on the same other machine has just died, and this one had not."""
        since, roles = self._gone.get(dead.machine, (-math.inf, set()))
        # One that never came up may have been placed there before the engine knew that the machine is gone.
        new = not dead.is_up or dead.name not in roles
        together = new and now - since < _GONE_TOGETHER_SECONDS
        if not dead.machine or not together:
            self._gone[dead.machine] = (now, {dead.name})
            return False
        roles.add(dead.name)
        return True

    def _stall_seconds(self) -> float:
        """run.stall_seconds, but no less than slow acting, learning and starting take."""
        return max(self._context.config.run.stall_seconds, self._fleet.timeouts.slow_work_seconds())

    def _fail_stalled(self) -> None:
        """Makes every role on this machine write its stack, and ends the run by RunFailed."""
        waiting = [
            f"  {member.name} (process {member.process.pid}): {len(member.in_flight)} calls in flight"
            if member.process
            else f"  {member.name}: has not started; are CPUs free for it?"
            for member in self._fleet.members
        ]
        # A signal handler writes the stack, so that it works while the role hangs.
        for member in self._fleet.members:
            request_stack(member.process)
        run = self._context.config.run
        raise RunFailed(
            f"nothing was inserted or learned for {self._stall_seconds():g} s "
            f"(run.stall_seconds = {run.stall_seconds:g}):\n"
            + "\n".join(waiting)
            + f"\nThe stacks of the roles on this machine are in {self._context.run_dir.logs}."
        )
