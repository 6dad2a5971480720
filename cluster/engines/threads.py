"""The number of threads of each role.

Owns all decisions about thread counts; must not import numpy or torch, which read them at import.
"""

import os
from pathlib import Path

from cluster.engines.cgroups import PROC, ROOT, cgroup_folders

# Two torch threads beside one busy process ran 4 times slower than one thread, and 60 times slower beside two
# busy processes, because OpenMP's workers spin at every barrier. So every process starts with one thread, and
# only the learner tries more (learner/threads.py).
SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def available_cores(proc: Path = PROC, root: Path = ROOT) -> int:
    """Cores that this process may use: those of its affinity mask, at most its CPU quota, at least 1.

    A quota of 2.5 CPUs counts as 2, because a third busy process would be throttled in every period.
    proc, root: see cgroup_folders.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [
        quota for folder in cgroup_folders("cpu", proc, root) if (quota := _cpu_quota(folder)) is not None
    ]
    return max(1, min([cores, *(int(quota) for quota in quotas)]))


def _cpu_quota(folder: Path) -> float | None:
    """Number of CPUs that the cgroup may use at a time; None without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    # "max" and -1 stand for no limit.
    return int(quota) / int(period) if quota.isdigit() else None


def env_threads(cores: int, num_actors: int) -> int:
    """Threads with which each actor steps ALE: an equal share of all cores but the learner's, at least 1."""
    return max(1, (cores - 1) // num_actors)
