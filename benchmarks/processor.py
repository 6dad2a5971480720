"""The processor that a benchmark ran on.

Owns one line of text; imports nothing of the project.
"""

import os
from pathlib import Path


def processor() -> str:
    """Model, cores and load as a benchmark begins: a measurement holds for one processor, and a quiet one."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown model"
    )
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
