from __future__ import annotations

import subprocess
import sys


def test_what_drivers_and_actors_read_comes_without_torch() -> None:
    modules = "learner.config, learner.core, learner.skipped_updates, learner.weights"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
