"""Cores of a container: CPU quotas of cgroups version 1 and 2, at any depth, in trees made by hand.

Tests cluster/engines/cgroups.py too, as test_machine.py does.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from qfleet_cgroups import cgroups

from cluster.engines.threads import available_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        # Version 2, in a container that sees its own group as the root.
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        # A systemd slice: the quota stands in the group itself, or in one above it; the least counts.
        ("0::/user.slice/run.scope\n", {"user.slice/run.scope/cpu.max": "400000 100000"}, 4),
        (
            "0::/user.slice/run.scope\n",
            {"user.slice/cpu.max": "200000 100000", "user.slice/run.scope/cpu.max": "400000 100000"},
            2,
        ),
        ("0::/jöb\n", {"jöb/cpu.max": "200000 100000"}, 2),
        # Version 1: one hierarchy a controller, under either name.
        (
            "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
            {
                "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        # In a container of version 1 the path is the host's, but the files are at the root.
        (
            "3:cpuacct,cpu:/kubepods/pod1\n",
            {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("2:cpuset:/\n", {}, 8),
        ("", {}, 8),
    ],
)
def test_quotas(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert available_cores(*cgroups(tmp_path, groups, files)) == expected


def test_where_nothing_tells_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "none", tmp_path / "none") == 8
