"""Takes a consistent checkpoint while the run goes on, without a barrier.

Every push falls before or after its shard's seal, the learner's state is of one version, and no role waits.
Owns the checkpoint in progress and the thread that writes it; must not import ray or torch.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster.checkpoints.checkpoint import (
    CheckpointStore,
    DamagedCheckpointError,
    RunState,
    SavedCheckpoint,
    shard_folder,
)
from cluster.engines.engine import EngineError
from cluster.runtime.fleet import Fleet
from cluster.runtime.member import Member
from cluster.runtime.roles import LearnerRole
from cluster.runtime.shard_role import ShardRole
from learner.core import LearnerState
from replay_service.journal.durability import SealReply
from replay_service.journal.writer import SegmentFact


@dataclass(frozen=True)
class CheckpointResult:
    """A checkpoint that was saved, or the problem that prevented it. seconds: its duration."""

    saved: SavedCheckpoint | None
    problem: str | None
    seconds: float


@dataclass(eq=False)
class _Pending:
    """A checkpoint in progress. unsealed: the shards that have slices left."""

    partial_folder: Path
    began: float
    unsealed: set[int]
    segments: dict[int, tuple[SegmentFact, ...]] = field(default_factory=dict)
    learner: LearnerState | None = None
    run: RunState | None = None
    problem: str | None = None
    written: Future[SavedCheckpoint] | None = None


class Checkpointer:
    """Takes one checkpoint at a time. run_state: makes the coordinator's part for a learner state."""

    def __init__(
        self, fleet: Fleet, store: CheckpointStore, run_state: Callable[[LearnerState], RunState]
    ) -> None:
        self._fleet = fleet
        self._store = store
        self._run_state = run_state
        self._pending: _Pending | None = None
        self._writer: ThreadPoolExecutor | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is in progress."""
        return self._pending is not None

    def begin(self, learner: LearnerState | None = None) -> None:
        """Asks every shard for its first slice, and the learner for its state if it is not given.

        Raises OSError.
        """
        began = time.monotonic()
        fleet = self._fleet
        pending = _Pending(self._store.begin(), began, {shard.index for shard in fleet.shards})
        self._pending = pending
        if learner is not None:
            self._take_state(pending, learner)
        else:
            fleet.grant(
                fleet.learner,
                LearnerRole.state,
                then=partial(self._take_state, pending),
                lost=partial(self._lose_state, pending),
            )
        for shard in fleet.shards:
            self._seal(pending, shard)

    def result(self) -> CheckpointResult | None:
        """The result of a checkpoint that has ended, returned once; None if none has ended since."""
        pending = self._pending
        if pending is None:
            return None
        saved: SavedCheckpoint | None = None
        if pending.written is not None:
            if not pending.written.done():
                return None
            try:
                saved = pending.written.result()
            except (OSError, DamagedCheckpointError) as error:
                pending.problem = str(error)
        elif pending.problem is None or pending.unsealed:
            return None
        if saved is None:
            self._store.abandon(pending.partial_folder)
        self._pending = None
        return CheckpointResult(saved, pending.problem, time.monotonic() - pending.began)

    def close(self) -> None:
        """Waits for the thread that writes."""
        if self._writer is not None:
            self._writer.shutdown()

    def _take_state(self, pending: _Pending, state: LearnerState) -> None:
        pending.learner, pending.run = state, self._run_state(state)
        self._write_if_complete(pending)

    def _lose_state(self, pending: _Pending, error: EngineError) -> None:
        pending.problem = f"{error.role} died meanwhile"

    def _seal(self, pending: _Pending, shard: Member[ShardRole]) -> None:
        """Asks the shard for its next slice."""
        self._fleet.grant(
            shard,
            ShardRole.seal_slice,
            shard_folder(pending.partial_folder, shard.index),
            then=partial(self._take_seal, pending, shard),
            lost=partial(self._lose_seal, pending, shard),
        )

    def _take_seal(self, pending: _Pending, shard: Member[ShardRole], reply: SealReply) -> None:
        if not reply.done:
            self._seal(pending, shard)
            return
        pending.unsealed.discard(shard.index)
        if reply.segments is None:
            pending.problem = (
                f"{shard.name}: {reply.problem}" if reply.problem else f"the disk is full for {shard.name}"
            )
        else:
            pending.segments[shard.index] = reply.segments
        self._write_if_complete(pending)

    def _lose_seal(self, pending: _Pending, shard: Member[ShardRole], error: EngineError) -> None:
        pending.unsealed.discard(shard.index)
        pending.problem = f"{shard.name} died meanwhile"

    def _write_if_complete(self, pending: _Pending) -> None:
        if pending.unsealed or pending.problem or pending.learner is None or pending.run is None:
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        pending.written = self._writer.submit(
            self._store.commit, pending.partial_folder, pending.run, pending.learner, pending.segments
        )
