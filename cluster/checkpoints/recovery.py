"""What lets a run outlive its parts: the learner's state kept at hand, cuts, and going on from either.

Owns when state is kept and cuts are taken, and what a run waits for before it goes on; must not import ray or
torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cluster.checkpoints.checkpoint import CheckpointStore, RunState, SavedCheckpoint, newest_learner_state
from cluster.checkpoints.checkpointer import Checkpointer
from cluster.checkpoints.resume import Resumed
from cluster.control.evaluation import ModelSelection
from cluster.engines.engine import Engine, EngineError, Ref
from cluster.metrics.counters import CheckpointMetrics, Counters
from cluster.record.recorder import Recorder
from cluster.record.run_dir import RunDir
from cluster.runtime.fleet import Credit, Fleet, Member
from cluster.settings.load_config import dump_config
from cluster.settings.resolved import ResolvedConfig
from learner.core import LearnerState
from replay_service.journal.durability import SealReply
from replay_service.journal.recovery import RecoveryReport
from replay_service.messages import ShardStatus

KEEP_STATE_SECONDS = 5.0
# The slices of a cut follow each other closely where nothing else is waited for.
_CHECKPOINT_WAIT_SECONDS = 0.02


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a living run that are kept and restored. started: on the monotonic clock.

    restored: called once all roles of a run that goes on are as they were.
    """

    engine: Engine
    config: ResolvedConfig
    fleet: Fleet
    counters: Counters
    selection: ModelSelection
    run_dir: RunDir
    recorder: Recorder
    started: float
    restored: Callable[[], None]


class Recovery:
    """Keeps one run going over the deaths of its roles and over its own."""

    def __init__(
        self, parts: Parts, *, resumed: Resumed | None = None, initial_weights: np.ndarray | None = None
    ) -> None:
        """initial_weights: [P] float32 that a run begins with which goes on from nothing."""
        self._parts = parts
        self._serial = parts.config.run.runtime == "serial"
        checkpoints = CheckpointStore(parts.run_dir.checkpoints, parts.config.checkpoint.keep)
        self._checkpointer = Checkpointer(parts.fleet, checkpoints, self._run_state)
        self._checkpointed_at = (time.monotonic(), parts.counters.version, -1)
        self._kept_state: Ref | None = None
        self._checkpoint_soon = False
        self._asked_state_at = time.monotonic()
        self._lost_transitions: dict[int, tuple[int, float]] = {}
        self._initial_weights = initial_weights if resumed is None else None
        # Roles that the run waits for: nothing is granted before all is as it was.
        self._restoring: set[str] = set()
        self._weights: dict[Ref, Ref] = {}
        learner = parts.fleet.learner
        if resumed is not None:
            self._restoring = {learner.handle.name, *(shard.handle.name for shard in parts.fleet.shards)}
            for shard in parts.fleet.shards:
                parts.fleet.grant(Credit("recovery", shard), "recovery")
            self._grant_restore(learner, "restore", parts.engine.put(resumed.learner))
        elif self._initial_weights is not None:
            self._restoring = {learner.handle.name}
            self._grant_restore(learner, "start_from", parts.engine.put(self._initial_weights))

    @property
    def restoring(self) -> bool:
        """Whether the run waits for roles to take up where they were."""
        return bool(self._restoring)

    @property
    def starts_from_weights(self) -> bool:
        """Whether the first version is worth something: it was given."""
        return self._initial_weights is not None

    def take_state(self, ref: Ref, state: LearnerState) -> None:
        """A state of the learner, to be kept."""
        self._kept_state = ref
        self._checkpointer.take_state(ref, state)

    def take_seal(self, shard: Member, reply: SealReply) -> None:
        """See Checkpointer.take_seal."""
        self._checkpointer.take_seal(shard, reply)

    def take_restored(self, ref: Ref, learner: Member, version: int) -> Ref:
        """The learner goes on from an older state; returns the weights of that."""
        counters = self._parts.counters
        lost, counters.version = counters.version - version, version
        if learner.handle.name in self._restoring:
            self._restored(learner)
        else:
            self._parts.recorder.info(
                f"{learner.handle.name} goes on from version {version}; {lost:,} updates are lost"
            )
        return self._weights.pop(ref)

    def take_recovery(self, shard: Member, report: RecoveryReport | None, status: ShardStatus) -> None:
        """A shard is up with what its journal held; if it replaces another everybody calls it from now on."""
        recorder = self._parts.recorder
        self._parts.counters.shards.take([status])
        if shard.handle.name in self._restoring:
            self._restored(shard)
        else:
            self._parts.fleet.introduce(shard)
            rows, mass = self._lost_transitions.pop(shard.index, (0, 0.0))
            if report is None or not status.count:
                recorder.info(
                    f"{shard.handle.name} is back and empty: {rows:,} transitions (mass {mass:.4g}) are lost"
                )
            else:
                torn = f"; {report.torn_bytes:,} bytes of an unfinished record were cut off"
                recorder.info(
                    f"{shard.handle.name} is back with {status.count:,} transitions (mass {status.mass:.4g}) "
                    f"from its journal{torn if report.torn_bytes else ''}"
                )
        for damaged in report.damaged if report is not None else ():
            recorder.warning(
                f"{shard.handle.name}, journal segment {damaged.name}: {damaged.reason}; skipped "
                f"{damaged.skipped_records:,} records and {damaged.skipped_bytes:,} bytes"
            )

    def dies(self, dead: Member) -> str:
        """A role is gone and about to be replaced; returns what went with it, in words."""
        self._checkpointer.died(dead)
        if dead.kind != "shard":
            return ""
        last = [status for status in self._parts.counters.shards.living() if status.shard == dead.index]
        rows, mass = self._lost_transitions[dead.index] = (last[0].count, last[0].mass) if last else (0, 0.0)
        return f" with {rows:,} transitions (mass {mass:.4g})"

    def give_state(self, learner: Member) -> bool:
        """A new learner goes on from the state kept last: of seconds ago, or else of the last checkpoint.

        False where there is neither, so that it begins anew.
        """
        engine, state = self._parts.engine, None
        if self._kept_state is not None:
            with contextlib.suppress(EngineError):  # it died with the learner's machine
                state = engine.get(self._kept_state)
        if state is None:
            state = newest_learner_state(self._parts.run_dir.checkpoints)
        if state is not None:
            self._grant_restore(learner, "restore", engine.put(state))
            return True
        self._parts.recorder.info(f"{learner.handle.name} begins anew: no state of it was kept yet")
        self._parts.counters.version = 0
        if self._initial_weights is not None:
            self._grant_restore(learner, "start_from", engine.put(self._initial_weights))
        return False

    def tick(self, now: float) -> None:
        """Keeps the learner's state every few seconds, and takes the cuts that are due. now: monotonic."""
        fleet = self._parts.fleet
        due = self._kept_state is None or now - self._asked_state_at >= KEEP_STATE_SECONDS
        if (
            due
            and not self._serial
            and self._parts.counters.updates
            and not fleet.granted(fleet.learner, "state")
        ):
            self._asked_state_at = now
            fleet.grant(Credit("state", fleet.learner), "state")
        if not self._serial and not self._checkpointer.busy and self.checkpoint_is_due():
            self._begin_checkpoint()
        self._end_checkpoint()

    def checkpoint_soon(self, why: str) -> None:
        """Takes a cut as soon as one can begin, whatever the clock says. why: what is about to happen."""
        persist = self._parts.config.replay.persist
        self._checkpoint_soon = persist != "none"
        what = (
            "a checkpoint is taken now"
            if self._checkpoint_soon
            else "replay.persist = none takes no checkpoint"
        )
        self._parts.recorder.warning(f"{why}; {what}")

    def checkpoint_is_due(self) -> bool:
        """In the serial runtime at certain updates only: a clock would make no two runs the same."""
        config, (checkpoint_at, checkpoint_version, _) = self._parts.config.checkpoint, self._checkpointed_at
        version, persist = self._parts.counters.version, self._parts.config.replay.persist
        if persist == "none" or self._restoring or not self._parts.counters.updates:
            return False
        if self._checkpoint_soon:
            return True
        if version == checkpoint_version:
            return False
        if persist == "continuous" and checkpoint_version == 0 and not self._serial:
            return True  # a journal is worth little without a learner that goes on with it
        every = config.every_updates
        if every is not None and version // every > checkpoint_version // every:
            return True
        seconds = None if self._serial else config.every_seconds
        return seconds is not None and time.monotonic() - checkpoint_at >= seconds

    def checkpoint_now(self, complete: Callable[[Ref], None]) -> SavedCheckpoint | None:
        """Takes a cut while nothing else is granted; `complete` handles what completes meanwhile."""
        self._begin_checkpoint()
        return self._wait(complete, time.monotonic() + self._parts.config.run.stall_seconds)

    def last_checkpoint(self, complete: Callable[[Ref], None]) -> None:
        """Takes a cut at the end of a run, unless the newest holds all there is."""
        parts = self._parts
        self._wait(complete, time.monotonic() + parts.config.run.stall_seconds)
        moved = self._checkpointed_at[1:] != (
            parts.counters.version,
            parts.counters.shards.inserted_transitions,
        )
        learned = parts.counters.updates and not self._restoring and not self._checkpointer.busy
        if parts.config.replay.persist != "none" and moved and learned:
            self.checkpoint_now(complete)

    def close(self) -> None:
        """Waits for the thread that writes cuts."""
        self._checkpointer.close()

    def _wait(self, complete: Callable[[Ref], None], deadline: float) -> SavedCheckpoint | None:
        engine, fleet = self._parts.engine, self._parts.fleet
        while self._checkpointer.busy and time.monotonic() < deadline:
            committed = self._end_checkpoint()
            if committed is not None:
                return committed
            for ref in engine.wait(list(fleet.credits), _CHECKPOINT_WAIT_SECONDS):
                complete(ref)
        if self._checkpointer.busy:
            self._parts.recorder.warning("no checkpoint: it was not done in time; the one before stays")
        return None

    def _begin_checkpoint(self) -> None:
        parts = self._parts
        self._checkpoint_soon = False
        self._checkpointed_at = (
            time.monotonic(),
            parts.counters.version,
            parts.counters.shards.inserted_transitions,
        )
        try:
            self._checkpointer.begin()
        except OSError as error:
            parts.recorder.warning(f"no checkpoint: {parts.run_dir.checkpoints} cannot be written ({error})")

    def _end_checkpoint(self) -> SavedCheckpoint | None:
        """The cut that has just been committed, if any; events tell of it."""
        result = self._checkpointer.result()
        if result is None:
            return None
        recorder = self._parts.recorder
        if result.committed is None:
            recorder.warning(f"no checkpoint: {result.problem}; the one before stays")
            return None
        cut = result.committed
        done = CheckpointMetrics(time.monotonic(), result.seconds, cut.num_bytes)
        self._parts.counters.take_checkpoint(done)
        recorder.info(
            f"checkpoint {cut.number} after {self._parts.counters.shards.env_steps:,} env steps: "
            f"{cut.num_bytes / 1e6:.1f} MB, {cut.new_bytes / 1e6:.1f} MB of it new, in {result.seconds:.1f} s"
        )
        return cut

    def _run_state(self, learner: LearnerState) -> RunState:
        parts, counters = self._parts, self._parts.counters.state()
        ahead = counters.version - learner.version
        at_version = replace(
            counters,
            version=learner.version,
            updates=counters.updates - ahead,
            sampled_transitions=counters.sampled_transitions - ahead * parts.config.learner.batch_size,
        )
        return RunState(
            seconds=time.monotonic() - parts.started,
            incarnations={member.handle.name: member.incarnation for member in parts.fleet.members},
            counters=at_version,
            selection=parts.selection.state(),
            config=dump_config(parts.config),
        )

    def _grant_restore(self, learner: Member, method: Literal["restore", "start_from"], given: Ref) -> None:
        credit = Credit("restore", learner)
        version, weights = self._parts.fleet.grant(credit, method, given, returns=2)
        self._weights[version] = weights

    def _restored(self, member: Member) -> None:
        """One less to wait for."""
        self._restoring.discard(member.handle.name)
        if not self._restoring:
            self._parts.restored()
