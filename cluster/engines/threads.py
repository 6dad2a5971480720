"""How many intra-op threads each role computes with.

The one place where thread counts are decided; must not import numpy or torch, whose pools read these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Two torch threads beside one busy process ran 4 times slower than one, beside two 60 times: OpenMP
# workers spin at every barrier. So every process starts with one, and the learner alone asks for more.
SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def available_cores(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: its affinity mask, bounded by the CPU quotas of its cgroups, at least 1.

    A quota of 2.5 CPUs counts as 2: a third busy process would be halted in every period.

    Args:
        proc: which cgroups this process is in.
        root: where their file system is; in a container often the container's own group is seen as the root.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cpu_cgroups(proc, root) if (quota := _cpu_quota(folder)) is not None]
    return max(1, min([cores, *(int(quota) for quota in quotas)]))


def _cpu_cgroups(proc: Path, root: Path) -> Iterator[Path]:
    """The folders of this process's groups that may limit CPUs, and those above them: each limits, too."""
    try:
        lines = proc.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Version 2 has one hierarchy without a name, version 1 one for each set of controllers.
        if not controllers:
            mount = root
        elif "cpu" in controllers.split(","):
            mount = root / controllers if (root / controllers).is_dir() else root / "cpu"
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        yield from (mount / part for part in (inner, *inner.parents))


def _cpu_quota(folder: Path) -> float | None:
    """CPUs that the group may use at a time; None where it does not limit."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    # "max" and -1 say that there is no limit.
    return int(quota) / int(period) if quota.isdigit() else None


def env_threads(cores: int, num_actors: int) -> int:
    """Threads with which each of num_actors steps ALE: the cores that the learner leaves, at least 1."""
    return max(1, (cores - 1) // num_actors)


def learner_threads(cores: int, busy_processes: int) -> int:
    """Threads for the learner: the cores that busy_processes other ones leave, at least 1."""
    return max(1, cores - busy_processes)
