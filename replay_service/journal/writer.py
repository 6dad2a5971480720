"""Appends records to a shard's journal, removes old segments, and links the rest into checkpoints.

Owns the files; must not import anything but numpy and the journal's format and file operations.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay_service.journal.delivered import Delivered
from replay_service.journal.durable_files import crc32_of, link_or_copy, sync_folder
from replay_service.journal.segments import (
    BLOCK,
    DELIVERY,
    FILE_PREFIX,
    KEYS,
    TRANSITIONS,
    KeyRun,
    pack_delivery,
    pack_key_runs,
    record_head,
    segment_path,
)

SEGMENT_BYTES = 64 << 20


@dataclass(frozen=True)
class SegmentFact:
    """A sealed segment: its file name, size, CRC-32 of the whole file, and keys [first_key, end_key)."""

    name: str
    num_bytes: int
    crc32: int
    first_key: int
    end_key: int


@dataclass(eq=False)
class SegmentFile:
    """A segment in the journal's folder; `fact` is set once the file is sealed and on the disk."""

    path: Path
    first_key: int
    end_key: int
    num_bytes: int
    fact: SegmentFact | None = None


class JournalWriter:
    """The writing side of a journal. A segment is sealed once it has transitions and SEGMENT_BYTES.

    next_key: key of the first transition that is not in the journal; `append` moves it on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        number: int,
        next_key: int,
        files: Sequence[SegmentFile] = (),
        renamed: Sequence[KeyRun] = (),
    ) -> None:
        """number: number of the next segment to be written; files: the segments before it, sealed.

        renamed: transitions in `files` that have other keys now; the next segment records them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.next_key = next_key
        self._number = number
        self._files = list(files)
        self._renamed = renamed
        self._descriptor: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def append(
        self, kind: bytes, first_key: int, end_key: int, payload: np.ndarray, delivered: Delivered
    ) -> None:
        """Writes a record to the page cache, where it survives the death of this process.

        payload: [bytes] uint8; delivered: the state before this record, with which each segment begins.

        Raises OSError; the files are then as they were before.
        """
        full = self._descriptor is not None and self._files[-1].num_bytes >= SEGMENT_BYTES
        if full and self.next_key > self._files[-1].first_key:
            self.seal_segment()
        if self._descriptor is None:
            self._open_segment(max(first_key, self.next_key), delivered)
        self._write(record_head(kind, first_key, payload), payload)
        if kind in (BLOCK, TRANSITIONS):
            self.next_key = self._files[-1].end_key = end_key

    def seal_segment(self) -> None:
        """Closes the segment being written, which then never changes; the next record begins another."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def drop_before(self, oldest_key: int) -> None:
        """Removes the oldest segments while all their keys are below oldest_key; keeps the newest segment.

        Not to be called before the future of `make_durable` is done. Links in other folders stay.
        """
        while len(self._files) > 1 and self._files[0].end_key <= oldest_key:
            self._files.pop(0).path.unlink(missing_ok=True)

    def make_durable(self, into: Path) -> Future[tuple[SegmentFact, ...]]:
        """Seals the journal; then, in a thread, syncs new segments to the disk and links all into `into`.

        A link takes no space and outlives the journal's own name for the file. Where the file system has no
        links, files are copied. The future's result: the segments, oldest first.
        """
        self.seal_segment()
        return self._thread.submit(_sync_and_link, tuple(self._files), into)

    def close(self) -> None:
        """Seals the segment being written and ends the thread."""
        self.seal_segment()
        self._thread.shutdown()

    def _open_segment(self, first_key: int, delivered: Delivered) -> None:
        path = segment_path(self.folder, self._number, first_key)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._files.append(SegmentFile(path, first_key, first_key, 0))
        try:
            state = pack_delivery(delivered)
            self._write(FILE_PREFIX + record_head(DELIVERY, first_key, state), state)
            if self._renamed:
                runs = pack_key_runs(self._renamed)
                self._write(record_head(KEYS, first_key, runs), runs)
        except OSError:
            self.seal_segment()
            self._files.pop()
            path.unlink()
            raise
        self._renamed = ()
        self._number += 1

    def _write(self, head: bytes, payload: np.ndarray) -> None:
        assert self._descriptor is not None
        file = self._files[-1]
        parts = [memoryview(head), payload.data]
        try:
            while parts:
                written = os.writev(self._descriptor, parts)
                while parts and written >= len(parts[0]):
                    written -= len(parts.pop(0))
                if parts:
                    parts[0] = parts[0][written:]
        except OSError:
            # If more records followed, the part written of this one would read as damage.
            os.ftruncate(self._descriptor, file.num_bytes)
            os.lseek(self._descriptor, file.num_bytes, os.SEEK_SET)
            raise
        file.num_bytes += len(head) + len(payload)


def _sync_and_link(files: tuple[SegmentFile, ...], into: Path) -> tuple[SegmentFact, ...]:
    into.mkdir(parents=True, exist_ok=True)
    facts = []
    for file in files:
        if file.fact is None:
            with file.path.open("rb") as opened:
                os.fsync(opened.fileno())
                crc32 = crc32_of(opened)
            file.fact = SegmentFact(file.path.name, file.num_bytes, crc32, file.first_key, file.end_key)
        facts.append(file.fact)
        link_or_copy(file.path, into / file.path.name)
    for folder in (files[0].path.parent, into):
        sync_folder(folder)
    return tuple(facts)
