"""How many intra-op threads each role computes with.

The one place where thread counts are decided; must not import numpy or torch, whose pools read these.
"""

from __future__ import annotations

import os

# Two torch threads beside one busy process ran 4 times slower than one, beside two 60 times: OpenMP
# workers spin at every barrier. So every process starts with one, and the learner alone asks for more.
SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def available_cores() -> int:
    """Cores this process may run on: its affinity mask, bounded by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def learner_threads(cores: int, busy_processes: int) -> int:
    """Threads for the learner: the cores that busy_processes other ones leave, at least 1."""
    return max(1, cores - busy_processes)
