"""Takes one consistent cut over a living fleet, without a barrier: every push falls before or after its
shard's seal, the learner's state is of one version, and nobody waits for anybody.

Owns what a cut on its way still waits for, and the thread that writes it; must not import ray or torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cluster.checkpoints.checkpoint import (
    CheckpointStore,
    DamagedCheckpointError,
    RunState,
    SavedCheckpoint,
    shard_folder,
)
from cluster.engines.engine import Ref
from cluster.runtime.fleet import Credit, Fleet, Member
from learner.core import LearnerState
from replay_service.journal.durability import SealReply
from replay_service.journal.writer import SegmentFact


@dataclass(frozen=True)
class CheckpointResult:
    """How a cut ended after so many seconds: committed, or the problem that kept it from it."""

    committed: SavedCheckpoint | None
    problem: str | None
    seconds: float


@dataclass(eq=False)
class _Pending:
    """A cut on its way. unsealed: the shards that have slices left."""

    partial: Path
    began: float
    state_ref: Ref | None
    unsealed: set[int]
    segments: dict[int, tuple[SegmentFact, ...]] = field(default_factory=dict)
    learner: LearnerState | None = None
    run: RunState | None = None
    problem: str | None = None
    written: Future[SavedCheckpoint] | None = None


class Checkpointer:
    """One cut at a time. `run_state` is asked for the coordinator's part when the learner's has come."""

    def __init__(
        self, fleet: Fleet, checkpoints: CheckpointStore, run_state: Callable[[LearnerState], RunState]
    ) -> None:
        self._fleet = fleet
        self._checkpoints = checkpoints
        self._run_state = run_state
        self._cut: _Pending | None = None
        self._writer: ThreadPoolExecutor | None = None

    @property
    def busy(self) -> bool:
        """Whether a cut is on its way."""
        return self._cut is not None

    def begin(self) -> None:
        """Asks the learner for its state and every shard for its first slice. Raises OSError."""
        began = time.monotonic()
        partial = self._checkpoints.begin()
        (state_ref,) = self._fleet.grant(Credit("state", self._fleet.learner), "state")
        self._cut = _Pending(partial, began, state_ref, {shard.index for shard in self._fleet.shards})
        for shard in self._fleet.shards:
            self._ask(self._cut, shard)

    def take_state(self, ref: Ref, state: LearnerState) -> None:
        """A state of the learner; perhaps the one that the cut waits for."""
        cut = self._cut
        if cut is not None and ref == cut.state_ref:
            cut.learner, cut.run = state, self._run_state(state)
            self._write_if_complete(cut)

    def take_seal(self, shard: Member, reply: SealReply) -> None:
        """A slice of a shard's seal is done."""
        cut = self._cut
        if cut is None:
            return
        if not reply.done:
            self._ask(cut, shard)
            return
        cut.unsealed.discard(shard.index)
        if reply.segments is None:
            cut.problem = f"the disk is full for {shard.handle.name}"
        else:
            cut.segments[shard.index] = reply.segments
        self._write_if_complete(cut)

    def died(self, dead: Member) -> None:
        """A role is gone: a cut that waits for it fails, once the others have finished their slices."""
        cut = self._cut
        if cut is None or cut.written is not None:
            return
        if dead.kind == "shard":
            cut.unsealed.discard(dead.index)
        elif dead.kind != "learner" or cut.learner is not None:
            return
        cut.problem = f"{dead.handle.name} died meanwhile"

    def result(self) -> CheckpointResult | None:
        """How the cut ended, once; None while it is on its way or none is."""
        cut = self._cut
        if cut is None:
            return None
        committed: SavedCheckpoint | None = None
        if cut.written is not None:
            if not cut.written.done():
                return None
            try:
                committed = cut.written.result()
            except (OSError, DamagedCheckpointError) as error:
                cut.problem = str(error)
        elif cut.problem is None or cut.unsealed:
            return None
        if committed is None:
            self._checkpoints.abandon(cut.partial)
        self._cut = None
        return CheckpointResult(committed, cut.problem, time.monotonic() - cut.began)

    def close(self) -> None:
        """Waits for the thread that writes."""
        if self._writer is not None:
            self._writer.shutdown()

    def _ask(self, cut: _Pending, shard: Member) -> None:
        into = shard_folder(cut.partial, shard.index)
        self._fleet.grant(Credit("seal", shard), "seal_slice", into)

    def _write_if_complete(self, cut: _Pending) -> None:
        if cut.unsealed or cut.problem is not None or cut.learner is None or cut.run is None:
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        cut.written = self._writer.submit(
            self._checkpoints.commit, cut.partial, cut.run, cut.learner, cut.segments
        )
