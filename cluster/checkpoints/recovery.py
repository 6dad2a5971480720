"""Recovery: keeps the newest learner state, schedules checkpoints, and restores from either.

Owns when state is kept, and what a run waits for before it goes on; must not import ray or torch.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from cluster.checkpoints.checkpoint import (
    CheckpointStore,
    RunState,
    SavedCheckpoint,
    newest_learner_state,
)
from cluster.checkpoints.checkpointer import Checkpointer
from cluster.checkpoints.resume import Resumed
from cluster.control.open_episodes import OpenEpisodes
from cluster.engines.engine import EngineError, Ref
from cluster.metrics.counters import CheckpointMetrics
from cluster.runtime.member import Member
from cluster.runtime.roles import LearnerRole
from cluster.runtime.run_context import RunContext
from cluster.runtime.shard_role import ShardRole
from cluster.settings.load_config import dump_config
from cluster.wording import without_numbers
from learner.core import LearnerState
from replay_service.journal.recovery import RecoveryReport
from replay_service.messages import ShardStatus

KEEP_STATE_SECONDS = 5.0
_SAY_SECONDS = 10.0


class Recovery:
    """Restores a role after its death, and all roles of a run that is resumed.

    publish: called with the weights that roles act with from now on: a restored learner's, or None if none
    are left. restored: called once the state of all roles of a resumed run is restored.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        publish: Callable[[Ref[np.ndarray] | None], None],
        restored: Callable[[], None],
        resumed: Resumed | None,
        initial_weights: np.ndarray | None,
    ) -> None:
        """initial_weights: [P] float32 to begin with; ignored if the run is resumed."""
        self._context = context
        self._publish = publish
        self._restored = restored
        store = CheckpointStore(context.run_dir.checkpoints, context.config.checkpoint.keep)
        self._checkpointer = Checkpointer(context.fleet, store, self._run_state)
        now = time.monotonic()
        self._checkpointed = (now, context.counters.version, -1)
        """Begin (monotonic), version and number of inserted transitions of the newest checkpoint."""
        self.open_episodes = OpenEpisodes(context.config.actors.envs_per_actor)
        """Takes each report of acting, for the checkpoints of the serial runtime."""
        self._checkpoint_soon = False
        self._problem = ""  # why the last checkpoint failed, without its numbers
        self._slowest_seconds = 0.0
        self._kept_state: LearnerState | None = None
        self._may_ask_learner = True
        self._state_asked_at = now
        self._asking_state = False
        self._lost_transitions: dict[int, tuple[int, float]] = {}
        self._initial_weights = initial_weights if resumed is None else None
        self.slices_read = 0
        """How often shards have answered that they have read a part of their journals."""
        # Roles whose state is not restored yet. Until all are, nothing is granted.
        self._restoring: set[str] = set()
        fleet = context.fleet
        if resumed is not None:
            self._restoring = {fleet.learner.name, *(shard.name for shard in fleet.shards)}
            for shard in fleet.shards:
                self._ask_recovery(shard)
            self._restore(fleet.learner, resumed.learner)
        elif initial_weights is not None:
            self._restoring = {fleet.learner.name}
            self._start_from(fleet.learner, initial_weights)

    @property
    def restoring(self) -> bool:
        """Whether the state of some role is not restored yet."""
        return bool(self._restoring)

    @property
    def starts_from_weights(self) -> bool:
        """Whether the learner began with given weights (learner.initial_weights)."""
        return self._initial_weights is not None

    @property
    def checkpointing(self) -> bool:
        """Whether a checkpoint is in progress."""
        return self._checkpointer.busy

    def note_loss(self, dead: Member[Any]) -> str:
        """Notes what a dead role last said it held, before it is replaced; returns that as text, or ""."""
        own = [
            status
            for status in self._context.counters.shards.living()
            if ("shard", status.shard, status.incarnation) == (dead.kind, dead.index, dead.incarnation)
        ]
        if not own:  # what the incarnation before it held stays noted
            return ""
        self._lost_transitions[dead.index] = (own[0].count, own[0].mass)
        return f" with {own[0].count:,} transitions (mass {own[0].mass:.4g})"

    def restore_replacement(self, fresh: Member[Any]) -> None:
        """Restores a replacement: a shard recovers its journal, a learner gets the newest state."""
        if fresh.kind == "shard":
            self._ask_recovery(fresh)
        elif fresh.kind == "learner":
            self._give_state(fresh)

    def tick(self, now: float) -> None:
        """Fetches the learner's state every few seconds and takes due checkpoints. now: monotonic."""
        context = self._context
        if context.engine.deterministic:
            return
        due = self._kept_state is None or now - self._state_asked_at >= KEEP_STATE_SECONDS
        if due and context.counters.updates and not self._asking_state:
            self._asking_state, self._state_asked_at = True, now
            context.fleet.grant(
                context.fleet.learner, LearnerRole.state, then=self._keep_state, lost=self._lose_state
            )
        if not self.checkpointing and self.checkpoint_is_due():
            self.begin_checkpoint()
        self.take_finished()

    def checkpoint_soon(self, why: str) -> None:
        """Makes a checkpoint due now, unless replay is not persisted. why: the reason, for the warning."""
        self._checkpoint_soon = self._context.config.replay.persist != "none"
        what = (
            "a checkpoint is taken now"
            if self._checkpoint_soon
            else "no checkpoint is taken: replay.persist is none"
        )
        self._context.recorder.warning(f"{why}; {what}")

    def checkpoint_is_due(self) -> bool:
        """Whether a checkpoint is due; with a deterministic engine by the number of updates only."""
        config, counters = self._context.config, self._context.counters
        deterministic, persist = self._context.engine.deterministic, config.replay.persist
        began, before, _ = self._checkpointed
        version = counters.version
        if persist == "none" or self._restoring or not counters.updates:
            return False
        if self._checkpoint_soon:
            return True
        if version == before:
            return False
        if persist == "continuous" and before == 0 and not deterministic:
            return True  # a journal is of little use without a learner state
        every = config.checkpoint.every_updates
        if every is not None and version // every > before // every:
            return not deterministic or not self._must_wait(every)
        seconds = None if deterministic else config.checkpoint.every_seconds
        return seconds is not None and time.monotonic() - began >= seconds

    def _must_wait(self, every_updates: int) -> bool:
        """Whether a checkpoint waits for open episodes, which the next life would not go on with."""
        episodes = self.open_episodes
        if episodes.hold_checkpoint:
            self._context.recorder.warning_once(
                "a checkpoint of the serial runtime ends all episodes; an open one has "
                f"{episodes.longest_steps:,} of the {episodes.lane_steps:,} steps of each lane since the "
                f"last one, so this one waits: checkpoint.every_updates = {every_updates:,} is short for "
                "such episodes"
            )
        return episodes.hold_checkpoint

    def has_unsaved_progress(self) -> bool:
        """Whether a checkpoint now would hold more than the newest one."""
        counters = self._context.counters
        moved = self._checkpointed[1:] != (counters.version, counters.shards.inserted_transitions)
        learned = bool(counters.updates) and not self._restoring and not self.checkpointing
        learned = learned and (self._may_ask_learner or self._kept_state is not None)
        return self._context.config.replay.persist != "none" and moved and learned

    def use_kept_state(self) -> None:
        """Saves the weights of the learner's state that was kept last; later checkpoints hold that state."""
        state, self._may_ask_learner = self._kept_state, False
        # Of a network that normalizes observations they are not all of the weights.
        if state is not None and "observation_mean" not in state.tensors:
            self._context.recorder.latest(state.version, state.tensors["online"])

    def begin_checkpoint(self, *, last: bool = False) -> None:
        """Begins a checkpoint; `take_finished` has its result. last: the run waits for it, and says so."""
        if last and self._slowest_seconds > _SAY_SECONDS:
            self._context.recorder.info(
                f"the last checkpoint begins, which may take {self._slowest_seconds:.0f} s; "
                "if the run is killed meanwhile, the one before stays"
            )
        context, counters = self._context, self._context.counters
        self._checkpoint_soon = False
        inserted = counters.shards.inserted_transitions
        self._checkpointed = (time.monotonic(), counters.version, inserted)
        try:
            self._checkpointer.begin(None if self._may_ask_learner else self._kept_state)
        except OSError as error:
            self._warn(f"{context.run_dir.checkpoints} cannot be written ({error})")

    def take_finished(self) -> SavedCheckpoint | None:
        """Returns the checkpoint that has just been saved, if any; logs the result of one that has ended."""
        result = self._checkpointer.result()
        if result is None:
            return None
        context, saved = self._context, result.saved
        if saved is None:
            self._warn(f"{result.problem}; the one before stays")
            return None
        self._problem = ""
        self._slowest_seconds = max(self._slowest_seconds, result.seconds)
        context.counters.take_checkpoint(CheckpointMetrics(time.monotonic(), result.seconds, saved.num_bytes))
        context.recorder.info(
            f"checkpoint {saved.number} after {context.counters.shards.env_steps:,} env steps: "
            f"{saved.num_bytes / 1e6:.1f} MB, {saved.new_bytes / 1e6:.1f} MB of it new, "
            f"in {result.seconds:.1f} s"
        )
        context.recorder.checkpoint(
            context.run_dir.checkpoints / saved.name, context.counters.shards.env_steps
        )
        return saved

    def _warn(self, problem: str) -> None:
        """Says why there is no checkpoint, once until there is one or the reason is another."""
        words = without_numbers(problem)
        if words != self._problem:
            self._context.recorder.warning(f"no checkpoint: {problem}")
        self._problem = words

    def close(self) -> None:
        """Waits for the thread that writes checkpoints."""
        self._checkpointer.close()

    def _keep_state(self, state: LearnerState) -> None:
        self._asking_state = False
        self._kept_state = state

    def _lose_state(self, error: EngineError) -> None:
        self._asking_state = False

    def _ask_recovery(self, shard: Member[ShardRole]) -> None:
        self._context.fleet.grant(shard, ShardRole.recovery, then=partial(self._take_recovery, shard))

    def _take_recovery(
        self, shard: Member[ShardRole], answer: tuple[RecoveryReport | None, ShardStatus] | None
    ) -> None:
        """Takes the recovery report of a started shard, and introduces a replacement to its callers."""
        if answer is None:
            self.slices_read += 1
            self._ask_recovery(shard)
            return
        report, status = answer
        recorder = self._context.recorder
        self._context.counters.shards.take([status])
        if shard.name in self._restoring:
            self._mark_restored(shard)
        else:
            self._context.fleet.announce_shard(shard)
            count, mass = self._lost_transitions.pop(shard.index, (0, 0.0))
            if report is None or not status.count:
                recorder.info(
                    f"{shard.name} is back and empty: {count:,} transitions (mass {mass:.4g}) are lost"
                )
            else:
                torn = f"; {report.torn_bytes:,} bytes of an unfinished record were removed"
                recorder.info(
                    f"{shard.name} is back with {status.count:,} transitions (mass {status.mass:.4g}) "
                    f"from its journal{torn if report.torn_bytes else ''}"
                )
        for damaged in report.damaged if report is not None else ():
            recorder.warning(
                f"{shard.name}, journal segment {damaged.name}: {damaged.reason}; skipped "
                f"{damaged.skipped_records:,} records and {damaged.skipped_bytes:,} bytes"
            )

    def _give_state(self, learner: Member[LearnerRole]) -> None:
        """Restores a new learner from the kept state, else the newest checkpoint; else it begins anew."""
        state = self._kept_state or newest_learner_state(self._context.run_dir.checkpoints)
        if state is not None:
            self._restore(learner, state)
            return
        self._context.recorder.info(f"{learner.name} begins anew: no state was kept yet")
        self._context.counters.version = 0
        self._publish(None)
        if self._initial_weights is not None:
            self._start_from(learner, self._initial_weights)

    def _restore(self, learner: Member[LearnerRole], state: LearnerState) -> None:
        then = partial(self._take_restored, learner)
        self._context.fleet.grant_learner(LearnerRole.restore, state, then=then)

    def _start_from(self, learner: Member[LearnerRole], weights: np.ndarray) -> None:
        then = partial(self._take_restored, learner)
        self._context.fleet.grant_learner(LearnerRole.start_from, weights, then=then)

    def _take_restored(self, learner: Member[LearnerRole], version: int, weights: Ref[np.ndarray]) -> None:
        """The learner has loaded a state: its version is the newest now, and its weights are published."""
        counters = self._context.counters
        lost, counters.version = counters.version - version, version
        if learner.name in self._restoring:
            self._mark_restored(learner)
        else:
            self._context.recorder.info(
                f"{learner.name} goes on from version {version}; {lost:,} updates are lost"
            )
        self._publish(weights)

    def _mark_restored(self, member: Member[Any]) -> None:
        """Stops waiting for this role; after the last one, the run continues."""
        self._restoring.discard(member.name)
        if not self._restoring:
            self._restored()

    def _run_state(self, learner: LearnerState) -> RunState:
        """The coordinator's part of a checkpoint, as of the learner's version."""
        context, counters = self._context, self._context.counters.state()
        ahead = counters.version - learner.version
        at_version = replace(
            counters,
            version=learner.version,
            updates=counters.updates - ahead,
            sampled_transitions=counters.sampled_transitions - ahead * context.config.learner.batch_size,
            checkpoints=counters.checkpoints + 1,  # with this one
        )
        return RunState(
            seconds=time.monotonic() - context.started,
            incarnations={member.name: member.incarnation for member in context.fleet.members},
            counters=at_version,
            selection=context.selection.state(),
            config=dump_config(context.config),
        )
