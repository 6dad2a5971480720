"""Reading a shard's journal back: every sound record in order, everything else reported.

Owns what counts as torn, damaged and missing; must not import anything but numpy and siblings.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from replay_service.block import BlockSchema
from replay_service.codec import BlockError, decode
from replay_service.journal.segments import (
    BLOCK,
    DELIVERY,
    KEYS,
    PRIORITIES,
    ROWS,
    Delivered,
    Journal,
    JournalError,
    KeyRun,
    Record,
    Segment,
    read_segment,
    segment_paths,
    unpack_delivery,
    unpack_key_runs,
    unpack_priorities,
)
from replay_service.selectors import Selector
from replay_service.transition_store import CapacityError, TransitionStore


@dataclass(frozen=True)
class DamagedSegment:
    """A segment of which something was skipped: records that were refused one by one, and a rest of bytes."""

    name: str
    reason: str
    skipped_records: int
    skipped_bytes: int


@dataclass(frozen=True)
class RecoveryReport:
    """What came back. rows: held now; records: read with rows in them; torn_bytes: cut off at the end."""

    rows: int
    records: int
    torn_bytes: int
    damaged: tuple[DamagedSegment, ...]


@dataclass
class _Damage:
    reasons: list[str] = field(default_factory=list)
    skipped_records: int = 0
    skipped_bytes: int = 0


class FoundJournal:
    """The segments of a folder, opened and looked through; a record torn off at the very end is cut off."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder or a file cannot be read."""
        self._segments: list[Segment] = []
        self._damage: dict[str, _Damage] = {}
        self._torn_bytes = 0
        paths = segment_paths(folder)
        for path in paths:
            segment = read_segment(path)
            if segment.torn and path == paths[-1]:
                self._torn_bytes = segment.num_bytes - segment.good_bytes
                if not segment.records:
                    path.unlink()
                    break
                os.truncate(path, segment.good_bytes)
            elif segment.problem is not None:
                self._skip(segment, segment.problem, num_bytes=segment.num_bytes - segment.good_bytes)
            if self._segments and segment.number != self._segments[-1].number + 1:
                self._skip(segment, f"segments between {self._segments[-1].path.name} and this are missing")
            self._segments.append(segment)

    @property
    def next_number(self) -> int:
        """The number of the segment to be written next."""
        return self._segments[-1].number + 1 if self._segments else 0

    def first_key(self, lowest: int, capacity: int) -> int:
        """The key, `lowest` or little more, for the first row found: it comes to lie in its old slot.

        Raises ValueError if the journal has keys from `lowest` on: incarnations must rise.
        """
        keys = [record.first_key for segment in self._segments for record in segment.records if record.sound]
        if keys and max(keys) >= lowest:
            raise ValueError(f"the journal holds key {max(keys)}; a new incarnation's begin at {lowest}")
        rows = [
            record.first_key
            for segment in self._segments
            for record in segment.records
            if record.sound and record.kind in (BLOCK, ROWS)
        ]
        return lowest + (rows[0] - lowest) % capacity if rows else lowest

    def replay(
        self, schema: BlockSchema, store: TransitionStore, selector: Selector, journal: Journal
    ) -> tuple[Delivered, RecoveryReport]:
        """Fills store and selector, which are empty, and has `journal` adopt the segments.

        A row has the priority of the last cut that covers it, else the one it was inserted with.
        """
        delivered = Delivered({}, 0, 0)
        runs: deque[KeyRun] = deque()
        num_records = 0
        for segment in self._segments:
            begin_key = store.next_key
            for record in segment.records:
                try:
                    if not record.sound:
                        raise JournalError("a record's checksum differs")
                    if record.kind == DELIVERY:
                        delivered = unpack_delivery(record.payload)
                    elif record.kind == KEYS:
                        runs = _renamed(runs, unpack_key_runs(record.payload))
                    elif record.kind == PRIORITIES:
                        _set_priorities(record, runs, store, selector)
                    else:
                        delivered = _insert(record, delivered, runs, schema, store, selector)
                        num_records += 1
                except (JournalError, BlockError, CapacityError) as error:
                    self._skip(segment, str(error), num_records=1)
            journal.adopt(segment, begin_key, store.next_key)
        journal.rename(runs)
        damaged = tuple(
            DamagedSegment(name, "; ".join(damage.reasons), damage.skipped_records, damage.skipped_bytes)
            for name, damage in sorted(self._damage.items())
        )
        return delivered, RecoveryReport(store.count, num_records, self._torn_bytes, damaged)

    def _skip(self, segment: Segment, reason: str, *, num_records: int = 0, num_bytes: int = 0) -> None:
        damage = self._damage.setdefault(segment.path.name, _Damage())
        damage.skipped_records += num_records
        damage.skipped_bytes += num_bytes
        if reason not in damage.reasons:
            damage.reasons.append(reason)


def _insert(
    record: Record,
    delivered: Delivered,
    runs: deque[KeyRun],
    schema: BlockSchema,
    store: TransitionStore,
    selector: Selector,
) -> Delivered:
    """Stores the record's rows; returns what has been delivered with them."""
    block = decode(record.payload, expected_schema=schema)
    first_key = store.insert(block)
    selector.insert(first_key, block.priority)
    selector.evict_before(store.oldest_key)
    num_transitions = block.num_transitions
    if runs and (runs[-1].old - record.first_key == runs[-1].new - first_key == -runs[-1].rows):
        num_transitions += runs.pop().rows
    end = block.num_transitions - num_transitions
    runs.append(KeyRun(record.first_key + end, first_key + end, num_transitions))
    while runs[0].new + runs[0].rows <= store.oldest_key:
        runs.popleft()
    if record.kind == ROWS:
        return delivered
    return Delivered(
        {**delivered.writers, block.writer: (block.incarnation, block.sequence + 1)},
        delivered.inserted_transitions_total + block.num_transitions,
        delivered.env_steps_total + block.env_steps,
    )


def _renamed(runs: deque[KeyRun], renames: Sequence[KeyRun]) -> deque[KeyRun]:
    """The runs by the keys that the journal uses from here on; rows that it lost meanwhile are left out."""
    renamed: deque[KeyRun] = deque()
    for rename in renames:
        for run in runs:
            begin = max(run.old, rename.old)
            end = min(run.old + run.rows, rename.old + rename.rows)
            if begin < end:
                old, new = rename.new + begin - rename.old, run.new + begin - run.old
                renamed.append(KeyRun(old, new, end - begin))
    return renamed


def _set_priorities(record: Record, runs: deque[KeyRun], store: TransitionStore, selector: Selector) -> None:
    td_errors = unpack_priorities(record.payload)
    first, end = record.first_key, record.first_key + len(td_errors)
    for run in reversed(runs):
        if run.old + run.rows <= first:
            return
        begin = max(first, run.old, run.old + store.oldest_key - run.new)
        stop = min(end, run.old + run.rows)
        if begin < stop:
            keys = np.arange(begin, stop) + (run.new - run.old)
            selector.set_priorities(keys, td_errors[begin - first : stop - first])
