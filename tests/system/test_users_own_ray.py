"""A Ray of the user's own process is never touched, and a run's own leaves no trace in its process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from qfleet_processes import import_path
from qfleet_serial import SMALL

DEADLINE_SECONDS = 180.0

TRAIN = f"""
import json, sys
from pathlib import Path
from cluster.api import train
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_config

def small(runtime):
    return load_config(None, [*{list(SMALL)!r}, f"run.runtime={{runtime}}"])
"""

OWN_RAY = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False)
remembered = ray.put(41)
said = []
for runtime in ("ray", "cluster"):
    try:
        train(small(runtime), Path(sys.argv[1]) / runtime)
    except ConfigError as error:
        said.append(str(error))
for runtime in ("serial", "local"):
    train(small(runtime), Path(sys.argv[1]) / runtime)
from ray._private import worker
told = {"said": said, "value": ray.get(remembered), "prints": worker._worker_logs_enabled}

@ray.remote
def task(folder):
    train(small("serial"), Path(folder) / "in-a-task-serial")
    train(small("local"), Path(folder) / "in-a-task-local")
    try:
        train(small("ray"), Path(folder) / "in-a-task-ray")
    except ConfigError as error:
        return str(error)

told["task"] = ray.get(task.remote(sys.argv[1]))
(Path(sys.argv[1]) / "told.json").write_text(json.dumps(told))
"""

TRACES = """
import faulthandler, logging, os, signal
import psutil, ray
from ray._private import ray_constants, worker
from cluster.engines.ray_engine import RayEngine

def state():
    logger = logging.getLogger("ray")
    return {
        "environment": dict(os.environ),
        "logger": [logger.level, list(map(str, logger.handlers))],
        "prints": worker._worker_logs_enabled,
        "signals": [str(signal.getsignal(number)) for number in (2, 15, 1)],
        "spans machines": ray_constants.ENABLE_RAY_CLUSTER,
        "faults": faulthandler.is_enabled(),
        "children": [child.pid for child in psutil.Process().children(recursive=True)],
    }

before = state()
engine = RayEngine(private=True)
engine.start()
during = state()
engine.close()
after = state()
changed = [[name for name in before if other[name] != before[name]] for other in (during, after)]
(Path(sys.argv[1]) / "told.json").write_text(json.dumps(changed))
"""


def answers(program: str, folder: Path) -> object:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN + program, str(folder)],
        env=None,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", import_path())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_process_with_a_ray_of_its_own_keeps_it(tmp_path: Path) -> None:
    told = answers(OWN_RAY, tmp_path)
    assert isinstance(told, dict)
    on_ray, on_cluster = told["said"]
    assert "run.runtime is ray, but this process uses a Ray of its own" in on_ray
    assert "RAY_ADDRESS is not set" in on_cluster
    assert (told["value"], told["prints"]) == (41, True)
    assert "this process uses a Ray of its own" in told["task"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"serial", "local", "in-a-task-serial", "in-a-task-local", "told.json"}


def test_a_private_ray_leaves_no_trace_in_its_process(tmp_path: Path) -> None:
    during, after = answers(TRACES, tmp_path)  # type: ignore[misc]
    assert {"environment", "logger", "prints", "spans machines", "children"} <= set(during)
    assert after == []
