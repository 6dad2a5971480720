"""The cost of a second torch thread beside busy processes: the reason for learner/threads.py.

Run as `python -m benchmarks.threads`. Prints the update rate with one thread and with two, alone and beside
one busy process, each against one thread alone.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.processor import processor
from benchmarks.update_step import CARTPOLE, BareLoop, Case, Minibatches, updates_per_second
from learner.config import LearnerConfig

UPDATES = 300


def _burn(until: float) -> None:
    while time.monotonic() < until:
        pass


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """`count` processes that each keep one core busy."""
    forever = time.monotonic() + 3_600
    burners = [multiprocessing.Process(target=_burn, args=(forever,), daemon=True) for _ in range(count)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def main() -> None:
    print(processor(), flush=True)
    case = Case("", CARTPOLE, LearnerConfig(batch_size=256), UPDATES)
    loop = BareLoop(case, Minibatches(case).held)
    torch.set_num_threads(1)
    loop.learn(100)
    alone = updates_per_second(loop, UPDATES)
    print(f"{'busy processes':>14s} {'threads':>8s} {'updates/s':>10s} {'of one thread alone':>20s}")
    for busy in (0, 1):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with busy_processes(busy):
                rate = updates_per_second(loop, UPDATES)
            print(f"{busy:14d} {threads:8d} {rate:10.0f} {rate / alone:20.2f}", flush=True)


if __name__ == "__main__":
    main()
