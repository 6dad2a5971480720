"""Memory that learner and shards of one host share: shards gather windows right where the learner reads.

Owns the slots, their addresses and their mapping; must not import anything but numpy.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Below this a reply that carries its windows is as fast: Ray sends it inline (docs/replay-benchmarks.md).
MIN_SLOT_BYTES = 1 << 17
# More than any learner has in use; beyond it the slot unused for longest is let go.
MAPPED_SLOTS = 8

_ALIGNMENT_BYTES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowArray:
    """One field of a slot: shape [K, B, W, *shape], dtype a numpy dtype string."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that the array takes."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class SlotAddress:
    """Where others find a slot: its owner's descriptor of the file, which file_id tells from any other."""

    host: str
    pid: int
    descriptor: int
    file_id: tuple[int, int]
    arrays: tuple[WindowArray, ...]


@dataclass(frozen=True)
class SlotPlace:
    """A shard's part of a slot: its windows of the k-th minibatch begin at row starts[k] of that."""

    address: SlotAddress
    starts: tuple[int, ...]


class WindowSlot:
    """Shared arrays of the process that creates them.

    The memory is a file without a name: the kernel frees it with its last mapping, however the processes end,
    and the size of /dev/shm does not bound it. Others of the host reach it through the owner's /proc entry.

    Attributes:
        address: for SlotMapper.
        windows: field name -> [K, B, W, *shape].

    Raises OSError where the system has no such memory, or not enough of it.
    """

    def __init__(self, arrays: tuple[WindowArray, ...]) -> None:
        if sys.platform != "linux":
            raise OSError("memory without a name needs Linux")
        descriptor = os.memfd_create("qfleet-windows")
        # Others open the file through this descriptor, so it stays open as long as the slot lives.
        weakref.finalize(self, os.close, descriptor)
        # Takes the pages now: a later lack of memory would be a SIGBUS in the middle of a copy.
        os.posix_fallocate(descriptor, 0, _num_bytes(arrays))
        self.address = SlotAddress(_host(), os.getpid(), descriptor, _file_id(descriptor), arrays)
        self.windows = _map(descriptor, arrays)


class SlotPool:
    """A sampler's slots, each for one request at a time.

    A slot that is not given back, because its request failed and a shard may still write to it, is replaced.
    """

    def __init__(self, arrays: tuple[WindowArray, ...]) -> None:
        self._arrays = arrays
        self._free: list[WindowSlot] = []
        self._possible = True

    def take(self) -> WindowSlot | None:
        """A slot that nobody writes to; None, after one warning, where the system gives no shared memory."""
        if self._free:
            return self._free.pop()
        if self._possible:
            try:
                return WindowSlot(self._arrays)
            except OSError as error:
                self._possible = False
                _log.warning("no shared memory for windows, replies carry them instead: %s", error)
        return None

    def give_back(self, slot: WindowSlot) -> None:
        """The slot's windows were read, and nobody writes to it any more."""
        self._free.append(slot)


class SlotMapper:
    """A shard's mappings of the slots that requests name."""

    def __init__(self) -> None:
        self._owner_pid: int | None = None
        self._mapped = lru_cache(maxsize=MAPPED_SLOTS)(_map_address)

    def parts(self, place: SlotPlace, counts: Sequence[int]) -> list[dict[str, np.ndarray]] | None:
        """For each minibatch the arrays that its windows belong in: field name -> [counts[k], W, *shape].

        None where this process cannot reach the slot: on another host, in another container, or its owner
        is gone.
        """
        if place.address.pid != self._owner_pid:
            # The slots of a learner that was replaced.
            self._mapped.cache_clear()
            self._owner_pid = place.address.pid
        windows = self._mapped(place.address)
        if windows is None:
            return None
        return [
            {name: array[k, start : start + count] for name, array in windows.items()}
            for k, (start, count) in enumerate(zip(place.starts, counts, strict=True))
        ]


def _map_address(address: SlotAddress) -> dict[str, np.ndarray] | None:
    if address.host != _host():
        return None
    try:
        descriptor = os.open(f"/proc/{address.pid}/fd/{address.descriptor}", os.O_RDWR)
    except OSError as error:
        _log.warning("no access to the learner's shared memory, replies carry the windows: %s", error)
        return None
    try:
        # The owner may have ended and another process, or another file, have taken its numbers.
        same = _file_id(descriptor) == address.file_id
        return _map(descriptor, address.arrays) if same else None
    finally:
        os.close(descriptor)


def _map(descriptor: int, arrays: tuple[WindowArray, ...]) -> dict[str, np.ndarray]:
    memory = mmap.mmap(descriptor, _num_bytes(arrays))
    mapped: dict[str, np.ndarray] = {}
    offset = 0
    for array in arrays:
        mapped[array.name] = np.ndarray(array.shape, array.dtype, memory, offset)
        offset += _aligned(array.num_bytes)
    return mapped


def _file_id(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _num_bytes(arrays: tuple[WindowArray, ...]) -> int:
    return sum(_aligned(array.num_bytes) for array in arrays)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _host() -> str:
    """The same for processes that see each other under /proc: one running kernel, one set of process ids."""
    with open("/proc/sys/kernel/random/boot_id") as boot:
        return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
