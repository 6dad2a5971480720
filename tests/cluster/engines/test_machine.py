"""Memory of containers and jobs, by cgroup files made by hand; cores are in test_threads.py."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from qfleet_cgroups import cgroups

from cluster.engines.machine import cluster_address, this_machine


def limited(folder: str, limit: str, usage: int, cached: int) -> dict[str, str]:
    """The files of a group of version 2."""
    statistics = f"anon 7\ninactive_file {cached // 2}\nactive_file {cached // 2}\nslab 3\n"
    texts = {"memory.max": f"{limit}\n", "memory.current": f"{usage}\n", "memory.stat": statistics}
    return {f"{folder}{name}": text for name, text in texts.items()}


def limited_v1(folder: str, limit: int, usage: int, cached: int) -> dict[str, str]:
    """The files of a group of version 1; its own numbers in memory.stat leave out groups within it."""
    statistics = f"inactive_file 5\ntotal_inactive_file {cached // 2}\ntotal_active_file {cached // 2}\n"
    texts = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{usage}\n", "stat": statistics}
    return {f"{folder}memory.{name}": text for name, text in texts.items()}


G = 10**9


@pytest.mark.parametrize(
    ("groups", "files", "total", "left"),
    [
        # A container that sees its own group as the root.
        ("0::/\n", limited("", f"{2 * G}", 3 * G // 2, 6 * G // 10), 2 * G, 11 * G // 10),
        ("12:memory:/docker/x\n", limited_v1("memory/", 2 * G, 3 * G // 2, 6 * G // 10), 2 * G, 11 * G // 10),
        # A job on a shared machine: the limit stands in its group, or in one around it; the least counts.
        ("0::/slurm/job_7/step_0\n", limited("slurm/job_7/", f"{G}", G // 2, 0), G, G // 2),
        (
            "0::/slurm/job_7\n",
            limited("slurm/job_7/", f"{2 * G}", G // 2, 0) | limited("slurm/", f"{3 * G}", 2 * G, 0),
            2 * G,
            G,
        ),
        ("4:cpu:/\n9:memory:/slurm/job_7\n", limited_v1("memory/slurm/job_7/", G, G // 2, 0), G, G // 2),
        # Used up, as far as the kernel counts.
        ("0::/\n", limited("", f"{G}", G, 0), G, 0),
    ],
)
def test_the_limits_of_containers_and_jobs_count(
    tmp_path: Path, groups: str, files: dict[str, str], total: int, left: int
) -> None:
    machine = this_machine(*cgroups(tmp_path, groups, files))
    assert (machine.memory_bytes, machine.available_bytes) == (total, left)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("", {}),
        ("0::/\n", {}),
        ("0::/\n", limited("", "max", 5, 5)),
        # Version 1's way to say "no limit".
        ("3:memory:/\n", limited_v1("memory/", 9223372036854771712, 5, 5)),
        ("0::/another\n", limited("job/", "1000", 5, 5)),
    ],
)
def test_without_a_limit_the_machine_counts(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    machine = this_machine(*cgroups(tmp_path, groups, files))
    assert machine.memory_bytes == psutil.virtual_memory().total
    assert 0 < machine.available_bytes < machine.memory_bytes
    assert machine.cores == len(os.sched_getaffinity(0))


def test_free_shared_memory_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs("/")
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    assert this_machine().shm_bytes == status.f_bsize * status.f_bavail

    def missing(path: str) -> os.statvfs_result:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "statvfs", missing)
    assert this_machine().shm_bytes is None


def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address() == ""
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert cluster_address() == ""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster_address() == "head:6379"
