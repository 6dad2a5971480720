"""What is loaded before the roles of a local run are forked: it exists, and acting needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

from qfleet_processes import import_path

CODE = """
import importlib, json, sys
from cluster.runtime import preload

for module in preload._ACTING:
    importlib.import_module(module)
acting = {"torch", "ray"} & sys.modules.keys()
for module in preload._LEARNING:
    importlib.import_module(module)
print(json.dumps([sorted(acting), sorted({"torch", "ray"} & sys.modules.keys())]))
"""


def test_acting_loads_no_torch_and_nothing_loads_ray() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        env={"PYTHONPATH": import_path()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == [[], ["torch"]]
