"""The cores, memory and shared memory of this machine, or of the container around this process; its cluster.

Owns reading them from the system; must not import ray or torch.
"""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.engines.cgroups import PROC, ROOT, cgroup_folders
from cluster.engines.threads import available_cores

_SHARED_MEMORY = "/dev/shm"
# (limit, usage, prefix in memory.stat of numbers that count groups within) in cgroups of version 2 and 1.
_CGROUP_FILES = (
    ("memory.max", "memory.current", ""),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


@dataclass(frozen=True)
class Machine:
    """One machine, or one container.

    available_bytes: memory that new processes may take now. shm_bytes: free room in /dev/shm; None on a
    system without it.
    """

    cores: int
    memory_bytes: int
    available_bytes: int
    shm_bytes: int | None


def cluster_address() -> str:
    """The Ray cluster to join, which RAY_ADDRESS names; empty if the variable is empty or not set."""
    return os.environ.get("RAY_ADDRESS", "")


def this_machine(proc: Path = PROC, root: Path = ROOT) -> Machine:
    """The machine as it is now. Memory limits of cgroups, of jobs and containers, count if they are below the
    machine's memory. proc, root: see cgroup_folders."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for folder in cgroup_folders("memory", proc, root):
        limited = _cgroup_memory(folder)
        if limited is not None and limited[0] < memory.total:
            total, available = min(total, limited[0]), min(available, limited[1])
    return Machine(available_cores(proc, root), total, available, _shm_bytes())


def peak_bytes() -> int:
    """The largest memory that this process has held so far, and the largest of the children that it has
    waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * sum(usage.ru_maxrss for usage in usages)


def _cgroup_memory(folder: Path) -> tuple[int, int] | None:
    """Limit and free memory of a cgroup, in bytes; None without a limit."""
    for limit_file, usage_file, prefix in _CGROUP_FILES:
        try:
            limit = int((folder / limit_file).read_text())
            usage = int((folder / usage_file).read_text())
            known = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        # The kernel drops cached files before it refuses memory, those read lately last.
        cached = sum(int(known.get(f"{prefix}{kind}_file", "0")) for kind in ("inactive", "active"))
        return limit, max(0, limit - usage + cached)
    return None


def _shm_bytes() -> int | None:
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bsize * status.f_bavail
