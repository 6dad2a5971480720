"""What all roles share: their process, streams of random numbers of their own, roots that load little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from qfleet_configs import VECTOR, resolved_config

from cluster.engines.process_info import process_info
from cluster.runtime.role import Role, RoleContext, Seeds


def test_every_role_has_streams_of_its_own() -> None:
    seeds = Seeds(5)
    states = {
        tuple(seeds.stream(role, index, incarnation).generate_state(4))
        for role in ("actor", "shard", "learner")
        for index in range(3)
        for incarnation in range(3)
    }
    assert len(states) == 27
    same = Seeds(5).stream("actor", 1, 2).generate_state(4)
    assert (same == seeds.stream("actor", 1, 2).generate_state(4)).all()
    assert (same != Seeds(6).stream("actor", 1, 2).generate_state(4)).any()


def test_a_role_in_the_coordinators_process_has_no_log_of_its_own(tmp_path: Path) -> None:
    role = Role(RoleContext("learner", resolved_config(), VECTOR, tmp_path, tmp_path))
    assert role.process_info() == process_info()
    assert not role.process_info().relays_log
    assert role.take_log() == ""


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("cluster.settings.load_config", ("torch", "ray", "gymnasium")),
        ("cluster.settings.resolve", ("torch", "ray")),
        ("cluster.runtime.roles", ("torch", "ray")),
        ("cluster.coordinator", ("torch", "ray")),
        ("cluster.api", ("torch", "ray")),
        ("cluster.cli", ("torch", "ray", "gymnasium")),
        ("cluster.engines.ray_engine", ("torch", "gymnasium")),
    ],
)
def test_a_role_loads_only_what_it_needs(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(sorted(set({forbidden!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
