"""Structures that draw slots in proportion to priorities: one million of them, batches of 64 and 512.

Run as `python -m benchmarks.priority_structures`, by an interpreter with numba to measure that, too. Each
candidate updates a batch, draws a stratified batch, or does both in turns, in microseconds a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Protocol

import numpy as np

from benchmarks.processor import processor
from replay_service.sum_tree import SumTree

CAPACITY = 1_000_000
ROUNDS = 15
BATCHES_PER_ROUND = 40


class Structure(Protocol):
    """Priorities of slots."""

    def set(self, slots: np.ndarray, priorities: np.ndarray) -> None: ...

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray: ...


def strata(total: float, batch: int, rng: np.random.Generator) -> np.ndarray:
    """One uniform point in each of `batch` equal parts of [0, total]."""
    points: np.ndarray = (np.arange(batch) + rng.random(batch)) * (total / batch)
    return points


class WideRoot:
    """The service's own: binary trees under a wide root of 4,096 blocks, searched by one cumulative sum."""

    def __init__(self, capacity: int) -> None:
        self._tree = SumTree(capacity)
        self.set = self._tree.set

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return self._tree.find(strata(self._tree.total, batch, rng))[0]


class BinaryTree:
    """One binary tree in one array, every level vectorized over the batch."""

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << (capacity - 1).bit_length()
        self._sums = np.zeros(2 * self._leaves)

    def set(self, slots: np.ndarray, priorities: np.ndarray) -> None:
        node = slots + self._leaves
        self._sums[node] = priorities
        while node[0] > 1:
            node = node >> 1
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        rest = strata(self._sums[1], batch, rng)
        node = np.ones(batch, np.int64)
        while node[0] < self._leaves:
            node *= 2
            left = self._sums[node]
            right = rest >= left
            rest -= left * right
            node += right
        return node - self._leaves


class Rejection:
    """Uniform candidates, kept with chance priority / largest. Not stratified; slow where few are large."""

    def __init__(self, capacity: int) -> None:
        self._priorities = np.zeros(capacity)
        self._largest = 0.0

    def set(self, slots: np.ndarray, priorities: np.ndarray) -> None:
        self._priorities[slots] = priorities
        self._largest = max(self._largest, float(priorities.max()))

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(0, np.int64)
        while len(drawn) < batch:
            slots = rng.integers(len(self._priorities), size=3 * batch)
            kept = rng.random(3 * batch) * self._largest < self._priorities[slots]
            drawn = np.append(drawn, slots[kept])
        return drawn[:batch]


class CumulativeSum:
    """Priorities in a flat array, summed up anew for each draw that follows an update."""

    def __init__(self, capacity: int) -> None:
        self._priorities = np.zeros(capacity)
        self._edges = np.zeros(capacity)

    def set(self, slots: np.ndarray, priorities: np.ndarray) -> None:
        self._priorities[slots] = priorities

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        np.cumsum(self._priorities, out=self._edges)
        return self._edges.searchsorted(strata(self._edges[-1], batch, rng), side="right")


def numba_tree() -> tuple[Callable[[int], Structure], float] | None:
    """The binary tree compiled by numba, and the seconds to import and compile; None without numba."""
    began = perf_counter()
    try:
        from numba import njit
    except ImportError:
        return None

    @njit  # type: ignore[untyped-decorator, unused-ignore]
    def set_all(sums: np.ndarray, leaves: int, slots: np.ndarray, priorities: np.ndarray) -> None:
        for i in range(len(slots)):
            node = slots[i] + leaves
            sums[node] = priorities[i]
            while node > 1:
                node >>= 1
                sums[node] = sums[2 * node] + sums[2 * node + 1]

    @njit  # type: ignore[untyped-decorator, unused-ignore]
    def find_all(sums: np.ndarray, leaves: int, points: np.ndarray) -> np.ndarray:
        found = np.empty(len(points), np.int64)
        for i in range(len(points)):
            node, rest = 1, points[i]
            while node < leaves:
                node *= 2
                if rest >= sums[node]:
                    rest -= sums[node]
                    node += 1
            found[i] = node - leaves
        return found

    class Compiled:
        """A binary tree; each path from leaf to root by itself."""

        def __init__(self, capacity: int) -> None:
            self._leaves = 1 << (capacity - 1).bit_length()
            self._sums = np.zeros(2 * self._leaves)

        def set(self, slots: np.ndarray, priorities: np.ndarray) -> None:
            set_all(self._sums, self._leaves, slots, priorities)

        def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
            found: np.ndarray = find_all(self._sums, self._leaves, strata(self._sums[1], batch, rng))
            return found

    small = Compiled(4)
    small.set(np.arange(4), np.ones(4))
    small.draw(2, np.random.default_rng(0))
    return Compiled, perf_counter() - began


def microseconds(structure: Structure, batch: int) -> tuple[float, float, float]:
    """(update, draw, both) of one batch, medians over rounds that take turns."""
    rng = np.random.default_rng(1)
    slots = rng.integers(CAPACITY, size=(BATCHES_PER_ROUND, batch))
    priorities = rng.random((BATCHES_PER_ROUND, batch)) ** 0.6 + 1e-3

    def update(i: int) -> None:
        structure.set(slots[i], priorities[i])

    def draw(i: int) -> None:
        structure.draw(batch, rng)

    def both(i: int) -> None:
        update(i)
        draw(i)

    took: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        for seconds, work in zip(took, (update, draw, both), strict=True):
            began = perf_counter()
            for i in range(BATCHES_PER_ROUND):
                work(i)
            seconds.append((perf_counter() - began) / BATCHES_PER_ROUND)
    first, second, third = (1e6 * median(seconds) for seconds in took)
    return first, second, third


def main() -> None:
    print(processor(), flush=True)
    candidates: dict[str, Callable[[int], Structure]] = {
        "wide root (SumTree)": WideRoot,
        "binary tree": BinaryTree,
        "rejection": Rejection,
        "cumulative sum": CumulativeSum,
    }
    compiled = numba_tree()
    if compiled is None:
        print("numba: not measured")
    else:
        candidates["binary tree, numba"], seconds = compiled
        print(f"numba: {seconds:.1f} s to import and compile")
    print(f"{'':22s} {'batch':>6s} {'update':>8s} {'draw':>8s} {'both':>8s}   (µs)")
    for name, make in candidates.items():
        structure = make(CAPACITY)
        structure.set(np.arange(CAPACITY), np.random.default_rng(0).random(CAPACITY) ** 0.6 + 1e-3)
        for batch in (64, 512):
            update, draw, both = microseconds(structure, batch)
            print(f"{name:22s} {batch:6d} {update:8.0f} {draw:8.0f} {both:8.0f}", flush=True)


if __name__ == "__main__":
    main()
