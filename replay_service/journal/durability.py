"""Keeps on disk what a shard holds, as `replay.persist` says, and makes its checkpoints slice by slice.

Owns the rules of what is written when, and of a full disk; must not import the shard or the sampler.
"""

import errno
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.journal.delivered import Delivered
from replay_service.journal.segments import BLOCK, DELIVERY, PRIORITIES, TRANSITIONS, pack_delivery
from replay_service.journal.writer import JournalWriter, SegmentFact
from replay_service.selectors import Selector
from replay_service.transition_store import TransitionStore

SLICE_SECONDS = 0.01
SLICE_PRIORITIES = 1 << 17
# Long enough that a caller in a loop does not spin, short enough not to delay other calls.
SLICE_WAIT_SECONDS = 0.002
# No space, quota used up, limit of the file's size reached.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JournalFullError(RuntimeError):
    """The disk has no room for the journal, which still holds all that was written before."""


@dataclass(frozen=True)
class SealReply:
    """Progress of a shard's checkpoint; if it is not `done`, ask for the next slice.

    segments: read in this order they restore transitions, priorities and writers; None until it is done, or
    if it failed. problem: why it failed; None if the disk was full, which the shard's status tells.
    """

    done: bool
    segments: tuple[SegmentFact, ...] | None = None
    problem: str | None = None


@dataclass(eq=False)
class _Sealing:
    """A checkpoint in progress: writes priorities of keys [next_key, end_key) first, then transitions.

    synced: its segments, once all is written.
    """

    next_key: int
    end_key: int
    synced: Future[tuple[SegmentFact, ...]] | None = None


class Durability:
    """A shard's journal and the rules for writing it.

    error: why transitions are missing on disk; the next successful checkpoint writes them and clears it.
    """

    def __init__(
        self, config: ReplayConfig, journal: JournalWriter, store: TransitionStore, selector: Selector
    ) -> None:
        self._config = config
        self._journal = journal
        self._store = store
        self._selector = selector
        self._sealing: _Sealing | None = None
        self.error: str | None = None

    def inserted(self, encoded: np.ndarray, first_key: int, delivered: Delivered) -> None:
        """Journals a block that is stored from first_key on, as persist "continuous" wants it.

        delivered: the state before it.

        Raises JournalFullError if the disk is full and that stops the run; OSError if it fails otherwise.
        """
        # A failure leaves a gap, which only a checkpoint can fill.
        if self._journal.next_key == first_key:
            try:
                self._journal.append(BLOCK, first_key, self._store.next_key, encoded, delivered)
            except OSError as error:
                self._take_failure(error)
        if self._sealing is None or self._sealing.synced is None:
            self._journal.drop_before(self._store.oldest_key)

    def seal_slice(self, into: Path, delivered: Delivered) -> SealReply:
        """Works on a checkpoint for about SLICE_SECONDS; begins one if none is in progress.

        Its segments are linked into folder `into`. It includes transitions inserted between slices.
        delivered: the present state. A failure costs this checkpoint only, unless a full disk stops the run.
        """
        try:
            reply = self._advance(into, delivered)
            if reply.done:
                self.error = None
        except OSError as error:
            is_full = error.errno in _DISK_FULL
            reply = SealReply(done=True, problem=None if is_full else str(error))
            if is_full:
                self._take_failure(error)
        if reply.done:
            self._sealing = None
        return reply

    def close(self) -> None:
        """Closes the files. What was written stays."""
        self._journal.close()

    def _advance(self, into: Path, delivered: Delivered) -> SealReply:
        if self._sealing is None:
            # First, so that evicted transitions make room even where a checkpoint found the disk full.
            self._journal.drop_before(self._store.oldest_key)
            # Transitions that are not on disk yet will be written with their priorities.
            on_disk = min(self._journal.next_key, self._store.next_key)
            end_key = on_disk if self._config.sampling == "prioritized" else 0
            self._sealing = _Sealing(self._store.oldest_key, end_key)
        sealing = self._sealing
        if sealing.synced is not None:
            wait([sealing.synced], SLICE_WAIT_SECONDS)
            if not sealing.synced.done():
                return SealReply(done=False)
            return SealReply(done=True, segments=sealing.synced.result())
        begin = max(sealing.next_key, self._store.oldest_key)
        if begin < sealing.end_key:
            sealing.next_key = min(begin + SLICE_PRIORITIES, sealing.end_key)
            td_errors = self._selector.td_errors(begin, sealing.next_key).astype("<f4", copy=False)
            self._journal.append(PRIORITIES, begin, sealing.next_key, td_errors.view(np.uint8), delivered)
        elif self._write_transitions(delivered):
            key = self._journal.next_key
            self._journal.append(DELIVERY, key, key, pack_delivery(delivered), delivered)
            self._journal.seal_segment()
            self._journal.drop_before(self._store.oldest_key)
            sealing.synced = self._journal.make_durable(into)
        return SealReply(done=False)

    def _write_transitions(self, delivered: Delivered) -> bool:
        """Writes transitions that are not on disk, block by block for one slice; True if none is left."""
        deadline = time.monotonic() + SLICE_SECONDS
        while (key := max(self._journal.next_key, self._store.oldest_key)) < self._store.next_key:
            end_key, block = self._store.rebuild(key)
            block = replace(block, priority=self._selector.td_errors(key, end_key))
            self._journal.append(TRANSITIONS, key, end_key, encode(block), delivered)
            if time.monotonic() > deadline:
                return False
        return True

    def _take_failure(self, error: OSError) -> None:
        """If the disk is full and the run continues without it, keeps the reason; raises otherwise."""
        if error.errno not in _DISK_FULL:
            raise error
        self.error = (
            f"no room for {error.filename or self._journal.folder}: {error.strerror}. "
            "Free some space, or set replay.persist=none."
        )
        if self._config.on_disk_full == "stop":
            raise JournalFullError(self.error) from None
