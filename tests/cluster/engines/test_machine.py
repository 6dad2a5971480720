"""Memory of a container, against cgroup files made by hand; cores are in test_threads.py."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from cluster.engines.machine import cluster_address, this_machine
from cluster.engines.threads import available_cores


@pytest.mark.parametrize(
    ("limit", "usage", "cached", "total", "left"),
    [
        ("2000000000", "1500000000", "600000000", 2_000_000_000, 1_100_000_000),
        ("max", "5", "5", None, None),
        ("9223372036854771712", "5", "5", None, None),  # version 1's way to say "no limit"
    ],
)
def test_the_containers_limit_counts(
    tmp_path: Path, limit: str, usage: str, cached: str, total: int | None, left: int | None
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{usage}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\nslab 3\n")
    machine = this_machine(tmp_path)
    assert machine.memory_bytes == (total or psutil.virtual_memory().total)
    if left is not None:
        assert machine.available_bytes == left


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    machine = this_machine(tmp_path)
    assert machine.memory_bytes == psutil.virtual_memory().total
    assert 0 < machine.available_bytes < machine.memory_bytes
    assert machine.cores == available_cores()


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
