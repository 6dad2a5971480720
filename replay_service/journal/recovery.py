"""Reads a shard's journal back: every sound record in order; reports everything else.

Owns what counts as torn, damaged and missing; must not import the shard or the sampler.
"""

import filecmp
import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay_service.block import BlockSchema
from replay_service.codec import BlockError, decode
from replay_service.journal.delivered import Delivered
from replay_service.journal.segments import (
    BLOCK,
    DELIVERY,
    KEYS,
    PRIORITIES,
    TRANSITIONS,
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
from replay_service.journal.writer import JournalWriter, SegmentFile
from replay_service.selectors import Selector
from replay_service.transition_store import CapacityError, TransitionStore


@dataclass(frozen=True)
class DamagedSegment:
    """A segment that was read in part: damaged records and all bytes after a damaged head were skipped."""

    name: str
    reason: str
    skipped_records: int = 0
    skipped_bytes: int = 0


@dataclass(frozen=True)
class RecoveryReport:
    """The parts that could not be read back: torn_bytes of an incomplete last record, damaged segments."""

    torn_bytes: int
    damaged: tuple[DamagedSegment, ...]


class FoundJournal:
    """The segments in a folder. An incomplete record at the very end is removed from its file."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder or a file cannot be read."""
        self._folder = folder
        self._segments: list[Segment] = []
        self._damage: list[DamagedSegment] = []
        self._torn_bytes = 0
        paths = segment_paths(folder)
        for path in paths:
            if copied := [each.path.name for each in self._segments if _are_copies(each.path, path)]:
                self._damage.append(DamagedSegment(path.name, f"a copy of {copied[0]}, removed"))
                path.unlink()
                continue
            segment = read_segment(path)
            if segment.torn and path == paths[-1]:
                self._torn_bytes = segment.num_bytes - segment.good_bytes
                if not segment.records:
                    path.unlink()
                    break
                os.truncate(path, segment.good_bytes)
            elif segment.problem is not None:
                skipped_bytes = segment.num_bytes - segment.good_bytes
                self._damage.append(DamagedSegment(path.name, segment.problem, skipped_bytes=skipped_bytes))
            if self._segments and segment.number != self._segments[-1].number + 1:
                reason = f"segments between {self._segments[-1].path.name} and this are missing"
                self._damage.append(DamagedSegment(path.name, reason))
            self._segments.append(segment)

    def first_key(self, lowest: int, capacity: int) -> int:
        """The new key of the first transition found: the smallest one from `lowest` on with its old slot.

        Raises ValueError if the journal has keys from `lowest` on: incarnations must rise.
        """
        sound = [record for segment in self._segments for record in segment.records if record.sound]
        highest = max((record.first_key for record in sound), default=-1)
        if highest >= lowest:
            raise ValueError(f"the journal holds key {highest}; keys of a new incarnation begin at {lowest}")
        oldest = next((each.first_key for each in sound if each.kind in (BLOCK, TRANSITIONS)), lowest)
        return lowest + (oldest - lowest) % capacity

    def replay(
        self, schema: BlockSchema, store: TransitionStore, selector: Selector
    ) -> Generator[None, None, tuple[JournalWriter, Delivered, RecoveryReport]]:
        """Fills the store and the selector, which are empty; yields after each record.

        A transition gets the priority of the last checkpoint that has one for it, else its initial one.

        Returns the journal to be continued, the state that it recorded, and what could not be read back.
        """
        delivered = Delivered({}, 0, 0)
        read_to = 0  # the first key that no record has had yet
        runs: deque[KeyRun] = deque()
        files: list[SegmentFile] = []
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
                    elif record.first_key < read_to:
                        raise JournalError("holds transitions that an earlier segment holds, too")
                    else:
                        before = store.next_key
                        delivered = _insert(record, delivered, runs, schema, store, selector)
                        read_to = record.first_key + store.next_key - before
                except (JournalError, BlockError, CapacityError) as error:
                    self._damage.append(DamagedSegment(segment.path.name, str(error), skipped_records=1))
                yield
            files.append(SegmentFile(segment.path, begin_key, store.next_key, segment.good_bytes))
        journal = JournalWriter(
            self._folder,
            number=max((segment.number for segment in self._segments), default=-1) + 1,
            next_key=store.next_key,
            files=files,
            renamed=runs,
        )
        return journal, delivered, RecoveryReport(self._torn_bytes, _merged(self._damage))


def _are_copies(one: Path, other: Path) -> bool:
    """Whether two segments are the same but for their numbers."""
    same_key = one.name.partition("-")[2] == other.name.partition("-")[2]
    return same_key and filecmp.cmp(one, other, shallow=False)


def _merged(damage: list[DamagedSegment]) -> tuple[DamagedSegment, ...]:
    """One entry per segment, by name, with all its reasons, each once."""
    by_name: dict[str, list[DamagedSegment]] = {}
    for each in damage:
        by_name.setdefault(each.name, []).append(each)
    return tuple(
        DamagedSegment(
            name,
            "; ".join(dict.fromkeys(part.reason for part in parts)),
            sum(part.skipped_records for part in parts),
            sum(part.skipped_bytes for part in parts),
        )
        for name, parts in sorted(by_name.items())
    )


def _insert(
    record: Record,
    delivered: Delivered,
    runs: deque[KeyRun],
    schema: BlockSchema,
    store: TransitionStore,
    selector: Selector,
) -> Delivered:
    """Stores the record's transitions and adds them to the runs; returns the state after it."""
    block = decode(record.payload, expected_schema=schema)
    first_key = store.insert(block)
    selector.insert(first_key, block.priority, store.oldest_key)
    count = block.num_transitions
    if runs and (runs[-1].old - record.first_key == runs[-1].new - first_key == -runs[-1].count):
        count += runs.pop().count
    end = block.num_transitions - count
    runs.append(KeyRun(record.first_key + end, first_key + end, count))
    while runs[0].new + runs[0].count <= store.oldest_key:
        runs.popleft()
    return delivered if record.kind == TRANSITIONS else delivered.after(block)


def _renamed(runs: deque[KeyRun], renames: Sequence[KeyRun]) -> deque[KeyRun]:
    """The runs, with the keys of later records as `old`; transitions that were lost are left out."""
    renamed: deque[KeyRun] = deque()
    for rename in renames:
        for run in runs:
            begin = max(run.old, rename.old)
            end = min(run.old + run.count, rename.old + rename.count)
            if begin < end:
                old, new = rename.new + begin - rename.old, run.new + begin - run.old
                renamed.append(KeyRun(old, new, end - begin))
    return renamed


def _set_priorities(record: Record, runs: deque[KeyRun], store: TransitionStore, selector: Selector) -> None:
    td_errors = unpack_priorities(record.payload)
    first, end = record.first_key, record.first_key + len(td_errors)
    for run in reversed(runs):
        if run.old + run.count <= first:
            return
        begin = max(first, run.old, run.old + store.oldest_key - run.new)
        stop = min(end, run.old + run.count)
        if begin < stop:
            keys = np.arange(begin, stop) + (run.new - run.old)
            selector.set_priorities(keys, td_errors[begin - first : stop - first])
