"""The CPU time and memory that processes and this machine use.

Owns reading them from the system, and when an actor holds too much memory; must not import ray or torch.
"""

import os
import time
from dataclasses import dataclass

import psutil

from cluster.control.every import Every
from cluster.engines.machine import Machine, this_machine
from replay_service.messages import ProcessUsage

_ROLE_SECONDS = 1.0
_MACHINE_SECONDS = 5.0
_MEMORY_SECONDS = 2.0
_FREE_SECONDS = 0.5
_SCARCE_SHARE = 0.1
_ACTORS_SHARE = 0.5
_SHARED_MEMORY = "/dev/shm"


class UsageMeter:
    """The usage of this process, read at most once a second: a reading costs as much as some updates."""

    def __init__(self, every_seconds: float = _ROLE_SECONDS) -> None:
        self._process = psutil.Process()
        self._every = Every(every_seconds, time.monotonic() - every_seconds)

    def due(self) -> ProcessUsage | None:
        """The usage; None within every_seconds of the last reading."""
        if not self._every.due(time.monotonic()):
            return None
        return ProcessUsage(time.process_time(), self._process.memory_info().rss)


class FreeCores:
    """How many of the cores that this process may use no other process uses."""

    def __init__(self) -> None:
        self._every = Every(_FREE_SECONDS, time.monotonic())
        self._free_seconds, self._at = _free_seconds(), time.monotonic()
        self._newest = 0.0

    def newest(self) -> float:
        """Free cores on average over about half a second; 0 before that was measured once."""
        now = time.monotonic()
        if self._every.due(now):
            free_seconds = _free_seconds()
            self._newest = (free_seconds - self._free_seconds) / (now - self._at)
            self._free_seconds, self._at = free_seconds, now
        return self._newest


def _free_seconds() -> float:
    """Seconds that the cores of this process have been idle or its own so far, summed up.

    A core whose process waits for a disk is idle, too; Linux counts these seconds apart.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    all_times = enumerate(psutil.cpu_times(percpu=True))
    idle = sum(times.idle + getattr(times, "iowait", 0.0) for core, times in all_times if core in cores)
    return idle + time.process_time()


class MemoryMeter:
    """Checks whether this process and its children hold too much memory, at most every 2 seconds.

    A page shared by n processes counts 1/n for each, so that forked processes do not count it n times.
    """

    def __init__(self, limit_bytes: int | None, actors_here: int) -> None:
        """limit_bytes: see memory_excess; actors_here: how many actors this machine may have."""
        self._limit_bytes = limit_bytes
        self._actors_here = actors_here
        self._process = psutil.Process()
        self._every = Every(_MEMORY_SECONDS, time.monotonic())

    def due(self) -> str | None:
        """The excess in words; None if there is none, or within 2 seconds of the last reading."""
        if not self._every.due(time.monotonic()):
            return None
        held = sum(map(_held_bytes, [self._process, *self._process.children(recursive=True)]))
        return memory_excess(held, self._limit_bytes, this_machine(), self._actors_here)


def memory_excess(held_bytes: int, limit_bytes: int | None, machine: Machine, actors_here: int) -> str | None:
    """By how much an actor that holds held_bytes exceeds its limit, in words; None if it does not.

    Without limit_bytes the limit is an equal share of half the machine, and it holds only while less than a
    tenth of the machine's memory is left: a large actor that harms nobody is left alone.
    """
    if limit_bytes is not None:
        if held_bytes <= limit_bytes:
            return None
        return f"{held_bytes / 1e9:.2f} GB, above actors.memory_limit_bytes = {limit_bytes}"
    share = _ACTORS_SHARE * machine.memory_bytes / actors_here
    if held_bytes <= share or machine.available_bytes >= _SCARCE_SHARE * machine.memory_bytes:
        return None
    return (
        f"{held_bytes / 1e9:.2f} GB, more than its share of {share / 1e9:.2f} GB, while its machine has only "
        f"{machine.available_bytes / 1e9:.2f} GB left"
    )


def _held_bytes(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(full, "pss", full.rss))


@dataclass(frozen=True)
class MachineUsage:
    """Memory of this machine. shared_memory_*: of /dev/shm, None if there is none."""

    machine_memory_bytes: int
    machine_memory_available_bytes: int
    shared_memory_bytes: int | None
    shared_memory_used_bytes: int | None


class MachineMeter:
    """The usage of this process and its machine, read at most every 5 seconds."""

    def __init__(self) -> None:
        self._own = UsageMeter(_MACHINE_SECONDS)

    def due(self) -> tuple[ProcessUsage, MachineUsage] | None:
        """The usage; None within 5 seconds of the last reading."""
        own = self._own.due()
        return None if own is None else (own, machine_usage())


def machine_usage() -> MachineUsage:
    """The memory of this machine now."""
    memory = psutil.virtual_memory()
    try:
        shared = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return MachineUsage(memory.total, memory.available, None, None)
    size = shared.f_frsize * shared.f_blocks
    return MachineUsage(memory.total, memory.available, size, size - shared.f_frsize * shared.f_bavail)
