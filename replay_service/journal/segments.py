"""The format of the journal's segment files, record by record (docs/block-format.md).

Owns the format and its checks; must not import anything but numpy, msgpack and `delivered`.
"""

import mmap
import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from replay_service.extremes import largest, least
from replay_service.journal.delivered import Delivered

BLOCK = b"BLCK"  # a push, as it came on the wire
TRANSITIONS = b"ROWS"  # transitions written from memory, as a block without a sender
PRIORITIES = b"PRIO"  # absolute TD errors of consecutive keys, <f4
DELIVERY = b"DLVR"  # what each writer has delivered so far
KEYS = b"KEYS"  # the keys by which later records refer to earlier transitions

FILE_PREFIX = struct.pack("<4sI", b"QFTJ", 1)  # magic, version
# Kind, first key, payload bytes, CRC-32 of the payload; then the CRC-32 of these four.
_HEAD = struct.Struct("<4sQQI")
_HEAD_BYTES = _HEAD.size + 4
_KEY_RUN = struct.Struct("<qqq")
# A block has its own checksum; the record's covers only the bytes that the block's does not.
_BLOCK_PREFIX_BYTES = 12
_KINDS = (BLOCK, TRANSITIONS, PRIORITIES, DELIVERY, KEYS)
_NAME = re.compile(r"(\d{8})-(\d+)\.qfj")


class JournalError(ValueError):
    """A journal's bytes break the format."""


@dataclass(frozen=True)
class KeyRun:
    """`count` transitions whose keys recovery changed from `old`, old + 1, ... to `new`, new + 1, ..."""

    old: int
    new: int
    count: int


@dataclass(frozen=True, eq=False)
class Record:
    """One record whose head is sound; payload [bytes] uint8 is a view into the mapped file.

    sound: the payload matches its checksum; for BLOCK and TRANSITIONS that covers the first 12 bytes, and
    `decode` checks the rest.
    """

    kind: bytes
    first_key: int
    payload: np.ndarray
    sound: bool


@dataclass(frozen=True, eq=False)
class Segment:
    """The records of a file, in order.

    good_bytes: where reading stopped; problem: why it stopped before the end, or None; torn: it stopped
    because the file ends within a record.
    """

    path: Path
    number: int
    records: tuple[Record, ...]
    good_bytes: int
    num_bytes: int
    problem: str | None
    torn: bool


def segment_path(folder: Path, number: int, first_key: int) -> Path:
    """The path of a segment file."""
    return folder / f"{number:08d}-{first_key}.qfj"


def segment_paths(folder: Path) -> list[Path]:
    """The segment files of a folder in the order in which they were written.

    Keys only grow, so even a file that somebody copied to another number comes after those before it.
    """
    if not folder.is_dir():
        return []
    found = [name for path in folder.iterdir() if (name := _NAME.fullmatch(path.name))]
    return [folder / name[0] for name in sorted(found, key=lambda name: (int(name[2]), int(name[1])))]


def read_segment(path: Path) -> Segment:
    """The records of a file, up to its end or to the first one whose head cannot be trusted.

    The file is mapped, not read, so a false length allocates nothing. Raises OSError.
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
    at = len(FILE_PREFIX)
    if num_bytes < at:
        return stopped(0, "the file ends within its first bytes", torn=True)
    if data[:at].tobytes() != FILE_PREFIX:
        return stopped(0, "not a journal segment of version 1")
    while at < num_bytes:
        begin = at + _HEAD_BYTES
        if begin > num_bytes:
            return stopped(at, "the file ends within a record", torn=True)
        kind, first_key, payload_bytes, checksum = _HEAD.unpack_from(data.data, at)
        if data.data[at + _HEAD.size : begin] != _checksum(data.data[at : at + _HEAD.size]):
            return stopped(at, f"the record at byte {at} was altered")
        if payload_bytes > num_bytes - begin:
            return stopped(at, "the file ends within a record", torn=True)
        payload = data[begin : begin + payload_bytes]
        sound = kind in _KINDS and zlib.crc32(_covered(kind, payload).data) == checksum
        records.append(Record(kind, first_key, payload, sound))
        at = begin + payload_bytes
    return stopped(at, None)


def record_head(kind: bytes, first_key: int, payload: np.ndarray) -> bytes:
    """The bytes before a record's payload [bytes] uint8."""
    head = _HEAD.pack(kind, first_key, len(payload), zlib.crc32(_covered(kind, payload).data))
    return head + _checksum(head)


def pack_delivery(delivered: Delivered) -> np.ndarray:
    """The payload [bytes] uint8 of a DELIVERY record."""
    state = {
        "writers": [[writer, *due] for writer, due in delivered.writers.items()],
        "inserted_rows_total": delivered.inserted_transitions_total,
        "env_steps_total": delivered.env_steps_total,
    }
    return np.frombuffer(msgpack.packb(state), np.uint8)


def unpack_delivery(payload: np.ndarray) -> Delivered:
    """The state in the payload [bytes] uint8 of a DELIVERY record. Raises JournalError."""
    try:
        state: Any = msgpack.unpackb(payload)
        writers = {writer: (incarnation, due) for writer, incarnation, due in state["writers"]}
        totals = (state["inserted_rows_total"], state["env_steps_total"])
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise JournalError(f"a delivery record does not hold writers and totals: {error}") from error
    counters = [*totals, *(number for writer, due in writers.items() for number in (writer, *due))]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in counters):
        raise JournalError("a delivery record holds numbers that are no counters")
    return Delivered(writers, *totals)


def pack_key_runs(runs: Sequence[KeyRun]) -> np.ndarray:
    """The payload [bytes] uint8 of a KEYS record."""
    return np.frombuffer(b"".join(_KEY_RUN.pack(run.old, run.new, run.count) for run in runs), np.uint8)


def unpack_key_runs(payload: np.ndarray) -> tuple[KeyRun, ...]:
    """The runs in the payload [bytes] uint8 of a KEYS record. Raises JournalError."""
    if len(payload) % _KEY_RUN.size:
        raise JournalError(f"keys of {len(payload)} bytes are not triples of int64")
    runs = tuple(KeyRun(*numbers) for numbers in _KEY_RUN.iter_unpack(payload.data))
    if not all(run.old >= 0 and run.new >= 0 and run.count > 0 for run in runs):
        raise JournalError("a run of keys is negative or empty")
    return runs


def unpack_priorities(payload: np.ndarray) -> np.ndarray:
    """The absolute TD errors [M] float32 in the payload [bytes] uint8 of a PRIORITIES record.

    Raises JournalError.
    """
    if len(payload) % 4:
        raise JournalError(f"priorities of {len(payload)} bytes are not float32")
    td_errors: np.ndarray = payload.view("<f4")
    # NaN makes the minimum NaN, which fails the comparison.
    if len(td_errors) and not (least(td_errors) >= 0.0 and largest(td_errors) < np.inf):
        raise JournalError("a priority is negative, infinite or not a number")
    return td_errors


def _covered(kind: bytes, payload: np.ndarray) -> np.ndarray:
    return payload[:_BLOCK_PREFIX_BYTES] if kind in (BLOCK, TRANSITIONS) else payload


def _checksum(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
