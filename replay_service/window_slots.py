"""Memory shared by a learner and the shards of its host, which gather windows where the learner reads them.

Owns the slots, their addresses and their mappings; must not import the shard or the sampler.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap

import numpy as np

from replay_service.host_memory import HostMemory, MemoryAddress, reach

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
    """A slot's address for shards."""

    memory: MemoryAddress
    arrays: tuple[WindowArray, ...]


@dataclass(frozen=True)
class SlotPlace:
    """A shard's part of a slot: in the k-th minibatch its windows begin at index starts[k]."""

    address: SlotAddress
    starts: tuple[int, ...]


class WindowSlot:
    """Shared arrays, owned by the process that creates them. Shards of the same host map them.

    Attributes:
        address: what a SlotMapper needs to map it.
        windows: field name -> [K, B, W, *shape].

    Raises OSError if the system has no such memory, or too little.
    """

    def __init__(self, arrays: tuple[WindowArray, ...]) -> None:
        self._memory = HostMemory("qfleet-windows", _num_bytes(arrays))
        self.address = SlotAddress(self._memory.address, arrays)
        self.windows = _arrays_in(self._memory.mapping, arrays)


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
        pid = place.address.memory.pid
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
    try:
        memory = reach(address.memory)
    except OSError as error:
        _log.warning("no access to the learner's shared memory, so replies carry windows: %s", error)
        return None
    return None if memory is None else _arrays_in(memory, address.arrays)


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _arrays_in(memory: mmap, arrays: tuple[WindowArray, ...]) -> dict[str, np.ndarray]:
    mapped: dict[str, np.ndarray] = {}
    offset = 0
    for array in arrays:
        mapped[array.name] = np.ndarray(array.shape, array.dtype, memory, offset)
        offset += array.num_bytes
    return mapped


def _num_bytes(arrays: tuple[WindowArray, ...]) -> int:
    return sum(array.num_bytes for array in arrays)
