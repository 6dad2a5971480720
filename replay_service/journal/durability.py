"""Keeps what a shard holds on disk, as `replay.persist` says, and makes a cut of it slice by slice.

Owns what is journaled when, and what a full disk does; must not import anything but numpy and siblings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.journal.segments import (
    BLOCK,
    PRIORITIES,
    ROWS,
    Delivered,
    Journal,
    JournalFullError,
    SegmentFact,
    disk_full,
)
from replay_service.selectors import Selector
from replay_service.transition_store import TransitionStore

SLICE_SECONDS = 0.01
SLICE_PRIORITIES = 1 << 17
# Long enough that a caller who asks again and again does not spin, short enough to disturb nobody.
SLICE_WAIT_SECONDS = 0.002


@dataclass(frozen=True)
class SealReply:
    """How far a cut of a shard is: where it is not `done`, ask for the next slice.

    segments: read in this order they bring back rows, priorities and writers; None if the disk was full.
    """

    done: bool
    segments: tuple[SegmentFact, ...] | None = None


@dataclass(eq=False)
class _Sealing:
    """A cut on its way: the priorities of [next_key, end_key) are still to be written, then rows."""

    next_key: int
    end_key: int
    synced: Future[tuple[SegmentFact, ...]] | None = None


class Durability:
    """One shard's journal and the rules by which it is written.

    error is the reason why rows are missing on disk; the next cut that succeeds writes them and clears it.
    """

    def __init__(
        self,
        config: ReplayConfig,
        journal: Journal,
        store: TransitionStore,
        selector: Selector,
        delivered: Callable[[], Delivered],
    ) -> None:
        self._continuous = config.persist == "continuous"
        self._stops = config.on_disk_full == "stop"
        self._prioritized = config.sampling == "prioritized"
        self._journal = journal
        self._store = store
        self._selector = selector
        self._delivered = delivered
        self._sealing: _Sealing | None = None
        self.error: str | None = None

    def inserted(self, encoded: np.ndarray, first_key: int) -> None:
        """To be called when a block's rows are stored and before `delivered` counts them.

        Raises JournalFullError where the run shall stop then; OSError for a disk that fails otherwise.
        """
        # After a failure there is a gap, which only a cut can fill.
        if self._continuous and self._journal.next_key == first_key:
            self._try(lambda: self._append(BLOCK, first_key, self._store.next_key, encoded))
        self._journal.drop_before(self._store.oldest_key)

    def seal_slice(self, into: Path) -> SealReply:
        """Works on a cut for about SLICE_SECONDS; begins one if none is on its way. Raises as inserted does.

        Its segments are linked into folder `into`. Rows that come in between slices belong to it, too.
        """
        reply = SealReply(done=True)

        def advance() -> None:
            nonlocal reply
            reply = self._advance(into)

        if self._try(advance) and reply.done:
            self.error = None
        if reply.done:
            self._sealing = None
            self._journal.sealing_done()
        return reply

    def close(self) -> None:
        """Closes the files. What was written stays."""
        self._journal.close()

    def _advance(self, into: Path) -> SealReply:
        if self._sealing is None:
            # Rows that are not on disk yet will carry their priorities themselves.
            on_disk = min(self._journal.next_key, self._store.next_key) if self._prioritized else 0
            self._sealing = _Sealing(self._store.oldest_key, on_disk)
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
            self._append(PRIORITIES, begin, sealing.next_key, td_errors.view(np.uint8))
        elif self._write_transitions():
            self._journal.append_delivery(self._delivered())
            self._journal.close_segment()
            self._journal.drop_before(self._store.oldest_key)
            sealing.synced = self._journal.make_durable(into)
        return SealReply(done=False)

    def _write_transitions(self) -> bool:
        """Writes rows that are not on disk, block by block while the slice lasts; True if none is left."""
        deadline = time.monotonic() + SLICE_SECONDS
        while (key := max(self._journal.next_key, self._store.oldest_key)) < self._store.next_key:
            end_key, block = self._store.rebuild(key)
            block = replace(block, priority=self._selector.td_errors(key, end_key))
            self._append(ROWS, key, end_key, encode(block))
            if time.monotonic() > deadline:
                return False
        return True

    def _append(self, kind: bytes, first_key: int, end_key: int, payload: np.ndarray) -> None:
        self._journal.append(kind, first_key, end_key, payload, self._delivered)

    def _try(self, write: Callable[[], None]) -> bool:
        """Writes; False, with the reason kept, if the disk is full and the run shall go on."""
        try:
            write()
        except (JournalFullError, OSError) as error:
            if not disk_full(error):
                raise
            self.error = f"{error} Free some space, or set replay.persist=none."
            if self._stops:
                raise JournalFullError(self.error) from None
            return False
        return True
