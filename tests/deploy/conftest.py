"""Makes support/ importable by name, and a Ray head for the tests that submit to one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from qfleet_ray_head import RayHead, ray_head


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """A head with room for a shard, a learner, an evaluator and two actors."""
    with ray_head(cpus=5) as started:
        yield started
