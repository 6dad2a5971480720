"""Memory shared by a learner and the shards of its host, which gather windows where the learner reads them.

Owns the slots, their addresses and their mappings; must not import anything but numpy.
"""

import logging
import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Replies with smaller windows are as fast without a slot: Ray sends them inline (docs/replay-benchmarks.md).
MIN_SLOT_BYTES = 1 << 17
# More slots than any learner uses at a time; a shard unmaps those unused for longest.
MAPPED_SLOTS = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowArray:
    """One field of a slot: shape [K, B, W, *shape], dtype a numpy dtype string."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the array in a slot, rounded up to a multiple of 64."""
        return math.ceil(np.dtype(self.dtype).itemsize * math.prod(self.shape) / 64) * 64


@dataclass(frozen=True)
class SlotAddress:
    """A slot's address for shards: the owner's descriptor of the memory file; file_id is (device, inode)."""

    host: str
    pid: int
    descriptor: int
    file_id: tuple[int, int]
    arrays: tuple[WindowArray, ...]


@dataclass(frozen=True)
class SlotPlace:
    """A shard's part of a slot: in the k-th minibatch its windows begin at index starts[k]."""

    address: SlotAddress
    starts: tuple[int, ...]


class WindowSlot:
    """Shared arrays, owned by the process that creates them.

    The memory is an anonymous file: the kernel frees it with its last mapping, however the processes end, and
    the size of /dev/shm does not limit it. Shards of the same host open it through the owner's /proc entry.

    Attributes:
        address: what a SlotMapper needs to map it.
        windows: field name -> [K, B, W, *shape].

    Raises OSError if the system has no such memory, or too little.
    """

    def __init__(self, arrays: tuple[WindowArray, ...]) -> None:
        if sys.platform != "linux":
            raise OSError("anonymous memory files need Linux")
        descriptor = os.memfd_create("qfleet-windows")
        # Shards open the file through this descriptor, so it stays open as long as the slot lives.
        weakref.finalize(self, os.close, descriptor)
        # Allocates the pages now: if memory ran out later, a copy would end in a SIGBUS.
        os.posix_fallocate(descriptor, 0, _num_bytes(arrays))
        self.address = SlotAddress(memory_host(), os.getpid(), descriptor, _file_id(descriptor), arrays)
        self.windows = _map(descriptor, arrays)


class SlotPool:
    """A sampler's slots, each for one request at a time.

    A slot is not given back if its request failed, because a shard may still write to it.
    """

    def __init__(self, arrays: tuple[WindowArray, ...]) -> None:
        self._arrays = arrays
        self._free: list[WindowSlot] = []
        self._available = True

    def take(self) -> WindowSlot | None:
        """A slot that no shard writes to; None, after one warning, where there is no shared memory."""
        if self._free:
            return self._free.pop()
        if self._available:
            try:
                return WindowSlot(self._arrays)
            except OSError as error:
                self._available = False
                _log.warning("no shared memory for windows, so replies carry them: %s", error)
        return None

    def give_back(self, slot: WindowSlot) -> None:
        """Takes back a slot whose windows were read and to which no shard writes any more."""
        self._free.append(slot)


def slot_pool(arrays: tuple[WindowArray, ...]) -> SlotPool | None:
    """A pool for windows of MIN_SLOT_BYTES and more; replies carry smaller ones."""
    return SlotPool(arrays) if _num_bytes(arrays) >= MIN_SLOT_BYTES else None


class SlotMapper:
    """A shard's mappings of the slots of each learner process."""

    def __init__(self) -> None:
        self._mapped: dict[int, Callable[[SlotAddress], dict[str, np.ndarray] | None]] = {}

    def parts(self, place: SlotPlace, counts: Sequence[int]) -> list[dict[str, np.ndarray]] | None:
        """For each minibatch k the arrays for this shard's windows: field name -> [counts[k], W, *shape].

        None if this process cannot reach the slot: it is on another host or in another container, or its
        owner has ended.
        """
        pid = place.address.pid
        if pid not in self._mapped:
            # Another learner process: unmaps the slots of those that have ended.
            self._mapped = {other: mapped for other, mapped in self._mapped.items() if _lives(other)}
            self._mapped[pid] = lru_cache(maxsize=MAPPED_SLOTS)(_map_address)
        windows = self._mapped[pid](place.address)
        if windows is None:
            return None
        return [
            {name: array[k, start : start + count] for name, array in windows.items()}
            for k, (start, count) in enumerate(zip(place.starts, counts, strict=True))
        ]


def _map_address(address: SlotAddress) -> dict[str, np.ndarray] | None:
    if address.host != memory_host():
        return None
    try:
        descriptor = os.open(f"/proc/{address.pid}/fd/{address.descriptor}", os.O_RDWR)
    except OSError as error:
        _log.warning("no access to the learner's shared memory, so replies carry windows: %s", error)
        return None
    try:
        # The owner may have ended, and another process or file may have its numbers now.
        same = _file_id(descriptor) == address.file_id
        return _map(descriptor, address.arrays) if same else None
    finally:
        os.close(descriptor)


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _map(descriptor: int, arrays: tuple[WindowArray, ...]) -> dict[str, np.ndarray]:
    memory = mmap.mmap(descriptor, _num_bytes(arrays))
    mapped: dict[str, np.ndarray] = {}
    offset = 0
    for array in arrays:
        mapped[array.name] = np.ndarray(array.shape, array.dtype, memory, offset)
        offset += array.num_bytes
    return mapped


def _file_id(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _num_bytes(arrays: tuple[WindowArray, ...]) -> int:
    return sum(array.num_bytes for array in arrays)


def memory_host() -> str:
    """A name that processes share if they see each other under /proc: same boot, same namespace of pids."""
    with open("/proc/sys/kernel/random/boot_id") as boot:
        return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
