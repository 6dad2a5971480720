"""What processes and this machine use: CPU time, memory, shared memory.

Owns reading the system's figures for metrics; decides nothing, must not import ray or torch.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

from replay_service.messages import ProcessUsage

_ROLE_SECONDS = 1.0
_MACHINE_SECONDS = 5.0
_SHARED_MEMORY = "/dev/shm"


class UsageMeter:
    """The usage of this process, read at most once a second: reading costs as much as some updates do."""

    def __init__(self, every_seconds: float = _ROLE_SECONDS) -> None:
        self._process = psutil.Process()
        self._every_seconds = every_seconds
        self._read_at = time.monotonic() - every_seconds

    def due(self) -> ProcessUsage | None:
        """The usage, or None within every_seconds of the last."""
        now = time.monotonic()
        if now - self._read_at < self._every_seconds:
            return None
        self._read_at = now
        return ProcessUsage(time.process_time(), self._process.memory_info().rss)


@dataclass(frozen=True)
class MachineUsage:
    """Of the coordinator's machine. shared_memory_*: of /dev/shm, None where there is none."""

    memory_bytes: int
    memory_available_bytes: int
    shared_memory_bytes: int | None
    shared_memory_used_bytes: int | None


class MachineMeter:
    """The usage of this process and its machine, read at most every 5 seconds."""

    def __init__(self) -> None:
        self._own = UsageMeter(_MACHINE_SECONDS)

    def due(self) -> tuple[ProcessUsage, MachineUsage] | None:
        """The usage, or None within 5 seconds of the last."""
        own = self._own.due()
        return None if own is None else (own, machine_usage())


def machine_usage() -> MachineUsage:
    """The usage now."""
    memory = psutil.virtual_memory()
    try:
        shared = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return MachineUsage(memory.total, memory.available, None, None)
    size = shared.f_frsize * shared.f_blocks
    return MachineUsage(memory.total, memory.available, size, size - shared.f_frsize * shared.f_bavail)
