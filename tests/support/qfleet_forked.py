"""What a fork of a template runs in tests: tells what it is, ends in some way, or waits."""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def main(*, forked: bool) -> None:
    """argv[1]: what to do."""
    if sys.argv[1] == "facts":
        print(json.dumps(facts() | {"forked": forked}))
    elif sys.argv[1] == "exit":
        atexit.register(print, "at exit")
        sys.exit(json.loads(sys.argv[2]))
    elif sys.argv[1] == "raise":
        raise ValueError("broken")
    elif sys.argv[1] == "wait":
        time.sleep(1000)


def facts() -> dict[str, object]:
    """What this process is."""
    return {
        "pids": [os.getpid(), os.getppid(), os.getsid(0)],
        "argv": sys.argv[1:],
        "threads": [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")],
        "cores": sorted(os.sched_getaffinity(0)),
        "stdin": sys.stdin.read(),
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "name": Path("/proc/self/comm").read_text().strip(),
        "files": sorted(os.readlink(file) for file in [*Path("/proc/self/fd").iterdir()] if file.exists()),
        "numpy": "numpy" in sys.modules,
        "draws": [random.random(), sys.modules["numpy"].random.rand()] if "numpy" in sys.modules else [],
    }
