"""Which rows a shard draws: uniformly, or in proportion to their priorities.

Owns the distribution over keys; must not import anything but numpy and `sum_tree`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from replay_service.sum_tree import SumTree


class Selector(Protocol):
    """Draws among the keys held, which are contiguous: [oldest, newest]."""

    @property
    def mass(self) -> float:
        """Sum of p^alpha over the keys held; their count where sampling is uniform."""

    @property
    def min_priority(self) -> float:
        """Smallest p^alpha held, inf if none."""

    @property
    def nbytes(self) -> int:
        """Bytes that the selector itself takes."""

    def concentration(self) -> tuple[float, float]:
        """Largest p^alpha held, and the sum of squares over all of them; goes through all of them."""

    def insert(self, first_key: int, td_errors: np.ndarray) -> None:
        """Keys first_key, first_key + 1, ... come in; those one capacity older are gone by that."""

    def evict_before(self, oldest_key: int) -> None:
        """Keys below oldest_key are gone."""

    def set_priorities(self, keys: np.ndarray, td_errors: np.ndarray) -> None:
        """New absolute TD errors [M] of keys [M], all held; of a key given twice the last one stays."""

    def td_errors(self, first_key: int, end_key: int) -> np.ndarray:
        """Absolute TD errors [M] float32 of the held keys [first_key, end_key), to give back at a restart."""

    def draw(self, counts: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A sample of each of K sizes: keys [M] int64, and each key's chance [M] float64 in one draw.

        Each sample is stratified by itself: its j-th draw falls into the j-th of equal shares of the mass.
        Something must be held.
        """


class UniformSelector:
    """Every key alike. In integers throughout, so the chances are exactly equal."""

    def __init__(self, capacity: int, first_key: int) -> None:
        self._capacity = capacity
        self._oldest_key = first_key
        self._next_key = first_key

    @property
    def mass(self) -> float:
        """The count."""
        return float(self._next_key - self._oldest_key)

    @property
    def min_priority(self) -> float:
        """1, or inf if nothing is held."""
        return 1.0 if self._next_key > self._oldest_key else math.inf

    @property
    def nbytes(self) -> int:
        """Nothing worth counting."""
        return 0

    def concentration(self) -> tuple[float, float]:
        """See Selector."""
        return 1.0, self.mass

    def insert(self, first_key: int, td_errors: np.ndarray) -> None:
        """See Selector."""
        self._next_key = first_key + len(td_errors)
        self._oldest_key = max(self._oldest_key, self._next_key - self._capacity)

    def evict_before(self, oldest_key: int) -> None:
        """See Selector."""
        self._oldest_key = max(self._oldest_key, oldest_key)

    def set_priorities(self, keys: np.ndarray, td_errors: np.ndarray) -> None:
        """Does nothing: there are no priorities."""

    def td_errors(self, first_key: int, end_key: int) -> np.ndarray:
        """Zeros: none is remembered."""
        return np.zeros(end_key - first_key, np.float32)

    def draw(self, counts: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See Selector.

        The c strata of n keys are cut in units of 1/c key: stratum j holds units [j n, (j + 1) n), and
        unit // c is its key. Each key has exactly c units of c n.
        """
        num_keys = self._next_key - self._oldest_key
        stratum, size = _strata(counts)
        units = stratum * num_keys + rng.integers(0, num_keys, len(size))
        return self._oldest_key + units // size, np.full(len(size), 1.0 / num_keys)


class PrioritizedSelector:
    """In proportion to p = (|TD| + epsilon)^alpha: Schaul et al. 2016 (arXiv:1511.05952), section 3.3."""

    def __init__(self, capacity: int, first_key: int, *, exponent: float, epsilon: float) -> None:
        self._tree = SumTree(capacity)
        self._capacity = capacity
        self._oldest_key = first_key
        self._exponent = exponent
        self._epsilon = epsilon

    @property
    def mass(self) -> float:
        """See Selector."""
        return self._tree.total

    @property
    def min_priority(self) -> float:
        """See Selector."""
        return self._tree.minimum

    @property
    def nbytes(self) -> int:
        """See Selector."""
        return self._tree.nbytes

    def concentration(self) -> tuple[float, float]:
        """See Selector."""
        return self._tree.concentration()

    def insert(self, first_key: int, td_errors: np.ndarray) -> None:
        """See Selector. Raises ValueError as set_priorities does."""
        priorities = self._priorities(td_errors)
        next_key = first_key + len(td_errors)
        for begin, end in self._runs(first_key, next_key):
            self._tree.set_range(begin % self._capacity, priorities[begin - first_key : end - first_key])
        self._oldest_key = max(self._oldest_key, next_key - self._capacity)

    def evict_before(self, oldest_key: int) -> None:
        """See Selector."""
        if oldest_key > self._oldest_key:
            for begin, end in self._runs(self._oldest_key, oldest_key):
                slot = begin % self._capacity
                self._tree.clear_range(slot, slot + end - begin)
            self._oldest_key = oldest_key

    def set_priorities(self, keys: np.ndarray, td_errors: np.ndarray) -> None:
        """See Selector. Raises ValueError for a TD error that is NaN, infinite or negative."""
        self._tree.set(keys % self._capacity, self._priorities(td_errors))

    def td_errors(self, first_key: int, end_key: int) -> np.ndarray:
        """See Selector. The float32 TD errors that were given, bit for bit; zeros where exponent is 0."""
        if self._exponent == 0.0:
            return np.zeros(end_key - first_key, np.float32)
        priorities = self._tree.get(np.arange(first_key, end_key) % self._capacity)
        td_errors: np.ndarray = priorities ** (1.0 / self._exponent) - self._epsilon
        np.maximum(td_errors, 0.0, out=td_errors)
        return td_errors.astype(np.float32)

    def draw(self, counts: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See Selector."""
        total = self._tree.total
        stratum, size = _strata(counts)
        slots, priorities = self._tree.find((stratum + rng.random(len(size))) * (total / size))
        keys = self._oldest_key + (slots - self._oldest_key) % self._capacity
        return keys, priorities / total

    def _priorities(self, td_errors: np.ndarray) -> np.ndarray:
        if len(td_errors) and not td_errors.min() >= 0.0:
            raise ValueError(f"absolute TD error {td_errors.min()} is refused: it is at least 0 and no NaN")
        priorities: np.ndarray = (td_errors.astype(np.float64) + self._epsilon) ** self._exponent
        return priorities

    def _runs(self, begin_key: int, end_key: int) -> Iterator[tuple[int, int]]:
        """The keys [begin, end), cut where their slots wrap round."""
        while begin_key < end_key:
            turn = (begin_key // self._capacity + 1) * self._capacity
            yield begin_key, min(turn, end_key)
            begin_key = min(turn, end_key)


def _strata(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each of the M = sum(counts) draws its stratum within its sample, and the size of that sample."""
    size = np.repeat(counts, counts)
    stratum = np.concatenate([np.arange(count) for count in counts]) if counts else size
    return stratum, size
