"""The journal of a shard: append-only segment files that outlive its process (docs/block-format.md).

Owns the files, their format and their removal; must not import anything but numpy, msgpack and siblings.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from replay_service.journal.durable_files import crc32_of, link_or_copy, sync_folder

SEGMENT_BYTES = 64 << 20

BLOCK = b"BLCK"  # a push, as it came on the wire
ROWS = b"ROWS"  # rows written from memory, as a block that no writer sent
PRIORITIES = b"PRIO"  # absolute TD errors of consecutive keys, <f4
DELIVERY = b"DLVR"  # who delivered what so far
KEYS = b"KEYS"  # under which keys the records that follow know the rows before

_MAGIC = b"QFTJ"
_VERSION = 1
_FILE = struct.Struct("<4sI")
# Kind, first key, payload bytes, CRC-32 of the payload; then the CRC-32 of these four.
_FACTS = struct.Struct("<4sQQI")
_HEAD_BYTES = _FACTS.size + 4
_KEY_RUN = struct.Struct("<qqq")
# A block carries its own checksum; the record's one covers the bytes that the block's does not.
_BLOCK_PREFIX_BYTES = 12
_KINDS = (BLOCK, ROWS, PRIORITIES, DELIVERY, KEYS)
_NAME = re.compile(r"(\d{8})-(\d+)\.qfj")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JournalFullError(RuntimeError):
    """The disk has no room for the journal; the journal holds all that was written before."""


class JournalError(ValueError):
    """A journal's bytes break the format."""


@dataclass(frozen=True)
class Delivered:
    """What a shard took so far over all its incarnations.

    writers: writer -> its incarnation and the sequence number due next. Totals as in ShardStatus.
    """

    writers: Mapping[int, tuple[int, int]]
    inserted_transitions_total: int
    env_steps_total: int


@dataclass(frozen=True)
class KeyRun:
    """Consecutive rows that recovery gave other keys: from `old` on before, from `new` on since."""

    old: int
    new: int
    rows: int


@dataclass(frozen=True)
class SegmentFact:
    """A sealed segment: its file name, size, CRC-32 of the whole file, and keys [first_key, end_key)."""

    name: str
    num_bytes: int
    crc32: int
    first_key: int
    end_key: int


@dataclass(frozen=True, eq=False)
class Record:
    """One record whose head is sound; payload [bytes] uint8 is a view into the mapped file.

    sound: the payload has its checksum, too; of BLOCK and ROWS the first 12 bytes, the rest is the codec's.
    """

    kind: bytes
    first_key: int
    payload: np.ndarray
    sound: bool


@dataclass(frozen=True, eq=False)
class Segment:
    """What a file holds: records in order, where the good bytes end, why reading stopped there (None: end).

    torn: reading stopped because the file ends within a record.
    """

    path: Path
    number: int
    records: tuple[Record, ...]
    good_bytes: int
    num_bytes: int
    problem: str | None
    torn: bool


@dataclass(eq=False)
class _File:
    """A segment in the journal's folder, sealed or being written."""

    path: Path
    first_key: int
    end_key: int
    num_bytes: int
    fact: SegmentFact | None = None


class Journal:
    """The writing side. A segment holds at least one row's records and ends once it has `segment_bytes`.

    next_key is the key of the first row that is not on disk; `append` moves it on.
    """

    def __init__(self, folder: Path, *, number: int, next_key: int, segment_bytes: int) -> None:
        """Begins with the segment `number`; those already there are named by `adopt`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.next_key = next_key
        self._number = number
        self._segment_bytes = segment_bytes
        self._files: list[_File] = []
        self._renamed: Sequence[KeyRun] = ()
        self._descriptor: int | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._sealing = False

    def adopt(self, segment: Segment, first_key: int, end_key: int) -> None:
        """Counts an older segment, whose rows have the keys [first_key, end_key) now, among the journal's."""
        self._files.append(_File(segment.path, first_key, end_key, segment.good_bytes))

    def rename(self, runs: Sequence[KeyRun]) -> None:
        """The next segment begins by saying which keys the rows before it have now."""
        self._renamed = tuple(runs)

    def append(
        self,
        kind: bytes,
        first_key: int,
        end_key: int,
        payload: np.ndarray,
        delivered: Callable[[], Delivered],
    ) -> None:
        """Writes a record to the page cache; what it says is safe from the death of this process.

        payload: [bytes] uint8. `delivered` is asked for the state before this record where a segment begins.

        Raises JournalFullError, with nothing changed; OSError for what else goes wrong with the disk.
        """
        full = self._descriptor is not None and self._files[-1].num_bytes >= self._segment_bytes
        if full and self.next_key > self._files[-1].first_key:
            self.close_segment()
        if self._descriptor is None:
            self._open_segment(max(first_key, self.next_key), delivered())
        self._write(_head(kind, first_key, payload), payload)
        if kind in (BLOCK, ROWS):
            self.next_key = self._files[-1].end_key = end_key

    def append_delivery(self, delivered: Delivered) -> None:
        """Writes the state as it is now. Raises as append does."""
        payload = _pack(delivered)
        self.append(DELIVERY, self.next_key, self.next_key, payload, lambda: delivered)

    def close_segment(self) -> None:
        """Seals the segment being written: it never changes again. The next record begins another."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def drop_before(self, oldest_key: int) -> None:
        """Removes the oldest segments while all their rows are below oldest_key; the newest always stays.

        Nothing is removed while `make_durable` works. Copies that it made elsewhere are not touched.
        """
        while not self._sealing and len(self._files) > 1 and self._files[0].end_key <= oldest_key:
            self._files.pop(0).path.unlink(missing_ok=True)

    def make_durable(self, into: Path) -> Future[tuple[SegmentFact, ...]]:
        """Seals, then in a thread: syncs what is new to the disk and links every segment into folder `into`.

        A linked file costs no bytes and lives on when this journal removes its own name for it; where the
        file system has no links it is copied.
        """
        self.close_segment()
        self._sealing = True
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="journal")
        return self._worker.submit(_settle, tuple(self._files), into)

    def sealing_done(self) -> None:
        """Allows drop_before again."""
        self._sealing = False

    def close(self) -> None:
        """Seals the segment being written and ends the thread."""
        self.close_segment()
        if self._worker is not None:
            self._worker.shutdown()

    def _open_segment(self, first_key: int, delivered: Delivered) -> None:
        path = self.folder / f"{self._number:08d}-{first_key}.qfj"
        payload = _pack(delivered)
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            self._files.append(_File(path, first_key, first_key, 0))
            prefix = _FILE.pack(_MAGIC, _VERSION)
            self._write(prefix + _head(DELIVERY, first_key, payload), payload)
            if self._renamed:
                renamed = _pack_key_runs(self._renamed)
                self._write(_head(KEYS, first_key, renamed), renamed)
                self._renamed = ()
        except (OSError, JournalFullError) as error:
            if self._descriptor is not None:
                self.close_segment()
                self._files.pop()
                path.unlink()
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise JournalFullError(f"no room for {path}: {error.strerror}") from None
            raise
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
        except OSError as error:
            # The part that was written would read as damage once more follows it.
            os.ftruncate(self._descriptor, file.num_bytes)
            os.lseek(self._descriptor, file.num_bytes, os.SEEK_SET)
            if error.errno in _DISK_FULL:
                raise JournalFullError(f"no room for {file.path}: {error.strerror}") from None
            raise
        file.num_bytes += len(head) + len(payload)


def disk_full(error: Exception) -> bool:
    """Whether it says that the disk, a quota or a limit of the file's size is used up."""
    return isinstance(error, JournalFullError) or (isinstance(error, OSError) and error.errno in _DISK_FULL)


def segment_paths(folder: Path) -> list[Path]:
    """The segment files of a folder in the order in which they were written."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def read_segment(path: Path) -> Segment:
    """The records of a file, up to its end or to the first that cannot be trusted.

    The file is mapped, not read: a length that is a lie allocates nothing. Raises OSError.
    """
    number = int(path.name.partition("-")[0])
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        # An empty file cannot be mapped.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if num_bytes else b""
    data = np.frombuffer(mapped, np.uint8)

    def stopped(at: int, problem: str | None, *, torn: bool = False) -> Segment:
        return Segment(path, number, tuple(records), at, num_bytes, problem, torn)

    records: list[Record] = []
    if num_bytes < _FILE.size:
        return stopped(0, "the file ends within its first bytes", torn=True)
    if _FILE.unpack_from(data.data) != (_MAGIC, _VERSION):
        return stopped(0, "not a journal segment of version 1")
    at = _FILE.size
    while at < num_bytes:
        begin = at + _HEAD_BYTES
        if begin > num_bytes:
            return stopped(at, "the file ends within a record", torn=True)
        kind, first_key, payload_bytes, checksum = _FACTS.unpack_from(data.data, at)
        if data.data[at + _FACTS.size : begin] != _checksum(data.data[at : at + _FACTS.size]):
            return stopped(at, f"the record at byte {at} was altered")
        if payload_bytes > num_bytes - begin:
            return stopped(at, "the file ends within a record", torn=True)
        payload = data[begin : begin + payload_bytes]
        sound = kind in _KINDS and zlib.crc32(_covered(kind, payload).data) == checksum
        records.append(Record(kind, first_key, payload, sound))
        at = begin + payload_bytes
    return stopped(at, None)


def unpack_delivery(payload: np.ndarray) -> Delivered:
    """The state that a DELIVERY record [bytes] uint8 holds. Raises JournalError."""
    try:
        state: Any = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise JournalError(f"a delivery record is not msgpack: {error}") from error
    match state:
        case {
            "writers": list(writers),
            "inserted_rows_total": int(rows),
            "env_steps_total": int(steps),
        }:
            counters = [rows, steps, *(number for writer in writers for number in _three(writer))]
            if all(type(number) is int and 0 <= number < 1 << 63 for number in counters):
                return Delivered({writer[0]: (writer[1], writer[2]) for writer in writers}, rows, steps)
    raise JournalError("a delivery record does not hold writers and totals")


def unpack_key_runs(payload: np.ndarray) -> tuple[KeyRun, ...]:
    """The runs that a KEYS record [bytes] uint8 holds. Raises JournalError."""
    if len(payload) % _KEY_RUN.size:
        raise JournalError(f"keys of {len(payload)} bytes are no triples of int64")
    runs = tuple(KeyRun(*numbers) for numbers in _KEY_RUN.iter_unpack(payload.data))
    if not all(run.old >= 0 and run.new >= 0 and run.rows > 0 for run in runs):
        raise JournalError("a run of keys is negative or empty")
    return runs


def unpack_priorities(payload: np.ndarray) -> np.ndarray:
    """The absolute TD errors [M] float32 of a PRIORITIES record [bytes] uint8. Raises JournalError."""
    if len(payload) % 4:
        raise JournalError(f"priorities of {len(payload)} bytes are no float32")
    td_errors: np.ndarray = payload.view("<f4")
    # NaN makes the minimum NaN, which fails the comparison.
    if len(td_errors) and not (td_errors.min() >= 0.0 and td_errors.max() < np.inf):
        raise JournalError("a priority is negative, infinite or not a number")
    return td_errors


def _three(writer: Any) -> list[Any]:
    return writer if isinstance(writer, list) and len(writer) == 3 else [None]


def _pack(delivered: Delivered) -> np.ndarray:
    state = {
        "writers": [[writer, *due] for writer, due in delivered.writers.items()],
        "inserted_rows_total": delivered.inserted_transitions_total,
        "env_steps_total": delivered.env_steps_total,
    }
    return np.frombuffer(msgpack.packb(state), np.uint8)


def _pack_key_runs(runs: Sequence[KeyRun]) -> np.ndarray:
    return np.frombuffer(b"".join(_KEY_RUN.pack(run.old, run.new, run.rows) for run in runs), np.uint8)


def _head(kind: bytes, first_key: int, payload: np.ndarray) -> bytes:
    facts = _FACTS.pack(kind, first_key, len(payload), zlib.crc32(_covered(kind, payload).data))
    return facts + _checksum(facts)


def _covered(kind: bytes, payload: np.ndarray) -> np.ndarray:
    return payload[:_BLOCK_PREFIX_BYTES] if kind in (BLOCK, ROWS) else payload


def _checksum(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _settle(files: tuple[_File, ...], into: Path) -> tuple[SegmentFact, ...]:
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
