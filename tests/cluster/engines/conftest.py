"""A private Ray for the tests of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engines.engine import Engine
from cluster.engines.process_engine import ForkServers, ProcessEngine


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[Engine]:
    """One private Ray for the whole module, whose processes find the roles in tests/support."""
    from cluster.engines.ray_engine import RayEngine

    environment = dict(os.environ)
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2] / "support")
    engine = RayEngine(private=True)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()
        engine.close()  # closing twice is allowed
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="module")
def process_engine() -> Iterator[Engine]:
    """One process engine for the whole module; its roles find the modules that this process finds."""
    engine = ProcessEngine(ForkServers(("qfleet_test_roles",), ("qfleet_test_roles",)))
    try:
        engine.start()
        yield engine
    finally:
        engine.close()
        engine.close()  # closing twice is allowed
