"""A role to be called by benchmarks.engines; in a module of its own, because other processes import it."""

import os
import statistics
import time

import numpy as np

from cluster.engines.engine import Calls, Handle


class Target:
    """Answers calls and calls another one."""

    def __init__(self, calls: Calls | None = None, other: "Handle[Target] | None" = None) -> None:
        self._calls = calls
        self._other = other

    def nothing(self) -> None:
        """Returns at once."""

    def take(self, array: np.ndarray) -> int:
        """Returns the size of what it gets."""
        return array.nbytes

    def zeros(self, num_bytes: int) -> np.ndarray:
        """A new array, [num_bytes] uint8."""
        return np.zeros(num_bytes, np.uint8)

    def push(self, num_bytes: int, rounds: int) -> float:
        """Median seconds until the other role has acknowledged an array of this size."""
        assert self._calls is not None
        assert self._other is not None
        array, seconds = np.ones(num_bytes, np.uint8), []
        for _ in range(rounds):
            began = time.perf_counter()
            self._calls.get(self._calls.call(self._other, Target.take, array)[0])
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def pid(self) -> int:
        """The pid of this process."""
        return os.getpid()

    def sleep(self) -> None:
        """Returns after minutes."""
        time.sleep(1000.0)
