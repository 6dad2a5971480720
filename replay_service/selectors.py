"""Draws of transitions: uniform, or in proportion to their priorities.

Owns the distribution over keys; must not import anything but numpy, `sum_tree` and `extremes`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from replay_service.extremes import least
from replay_service.sum_tree import SumTree


class UniformSelector:
    """Draws every key with the same probability, by the interface of PrioritizedSelector.

    It computes in integers, so the probabilities are exactly equal.
    """

    nbytes = 0

    def __init__(self, first_key: int) -> None:
        self._oldest_key = first_key
        self._next_key = first_key

    @property
    def mass(self) -> float:
        """The number of keys held."""
        return float(self._next_key - self._oldest_key)

    @property
    def min_priority(self) -> float:
        """1, or inf if nothing is held."""
        return 1.0 if self._next_key > self._oldest_key else math.inf

    def concentration(self) -> tuple[float, float]:
        """1, and the number of keys held."""
        return 1.0, self.mass

    def insert(self, first_key: int, td_errors: np.ndarray, oldest_key: int) -> None:
        """Adds a key for each of td_errors from first_key on, and drops all keys below oldest_key."""
        self._next_key = first_key + len(td_errors)
        self._oldest_key = oldest_key

    def set_priorities(self, keys: np.ndarray, td_errors: np.ndarray) -> None:
        """Does nothing: there are no priorities."""

    def td_errors(self, first_key: int, end_key: int) -> np.ndarray:
        """Zeros: TD errors are not kept."""
        return np.zeros(end_key - first_key, np.float32)

    def draw(self, counts: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Stratified draws; arguments and results as in PrioritizedSelector.draw.

        For c draws from n keys, each key has c units of the c n units. Stratum j holds the units
        [j n, (j + 1) n), and unit u belongs to key u // c.
        """
        num_keys = self._next_key - self._oldest_key
        stratum, size = _strata(tuple(counts))
        units = stratum * num_keys + rng.integers(0, num_keys, len(size))
        return self._oldest_key + units // size, np.full(len(size), 1.0 / num_keys)


class PrioritizedSelector:
    """Draws keys in proportion to p^alpha, p = |TD| + epsilon (Schaul et al. 2016, arXiv:1511.05952, 3.3).

    The keys held are consecutive. nbytes: bytes of the selector's own arrays.
    """

    def __init__(self, capacity: int, first_key: int, *, exponent: float, epsilon: float) -> None:
        self._tree = SumTree(capacity)
        self.nbytes = self._tree.nbytes
        self._capacity = capacity
        self._oldest_key = first_key
        self._exponent = exponent
        self._epsilon = epsilon

    @property
    def mass(self) -> float:
        """Sum of p^alpha over the keys held."""
        return self._tree.total

    @property
    def min_priority(self) -> float:
        """Smallest p^alpha held, inf if nothing is held."""
        return self._tree.minimum

    def concentration(self) -> tuple[float, float]:
        """Largest p^alpha held, and the sum of squares of all that are held; reads all of them."""
        return self._tree.concentration()

    def insert(self, first_key: int, td_errors: np.ndarray, oldest_key: int) -> None:
        """Adds M keys from first_key on with absolute TD errors [M], and drops all keys below oldest_key.

        At most `capacity` keys may remain. Raises ValueError as set_priorities does.
        """
        priorities = self._priorities(td_errors)
        next_key = first_key + len(td_errors)
        for begin, end in self._runs(first_key, next_key):
            self._tree.set_range(begin % self._capacity, priorities[begin - first_key : end - first_key])
        # The new keys have overwritten the slots of those one capacity older.
        for begin, end in self._runs(max(self._oldest_key, next_key - self._capacity), oldest_key):
            slot = begin % self._capacity
            self._tree.clear_range(slot, slot + end - begin)
        self._oldest_key = oldest_key

    def set_priorities(self, keys: np.ndarray, td_errors: np.ndarray) -> None:
        """Sets absolute TD errors [M] of keys [M], all held; the last value of a repeated key counts.

        Raises ValueError for a TD error that is NaN, infinite or negative.
        """
        self._tree.set(keys % self._capacity, self._priorities(td_errors))

    def td_errors(self, first_key: int, end_key: int) -> np.ndarray:
        """The absolute TD errors [M] float32 of the held keys [first_key, end_key), for the journal.

        They are as they were set, bit for bit; zeros if the exponent is 0.
        """
        if self._exponent == 0.0:
            return np.zeros(end_key - first_key, np.float32)
        priorities = self._tree.get(np.arange(first_key, end_key) % self._capacity)
        td_errors: np.ndarray = priorities ** (1.0 / self._exponent) - self._epsilon
        np.maximum(td_errors, 0.0, out=td_errors)
        return td_errors.astype(np.float32)

    def draw(self, counts: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws K samples of the sizes `counts`: M keys in all; at least one key must be held.

        Each sample of size c is stratified by itself: its j-th draw falls into the j-th of c equal shares of
        the mass.

        Returns:
            keys [M] int64, and the probability [M] float64 of each in a single draw.
        """
        total = self._tree.total
        stratum, size = _strata(tuple(counts), np.float64)
        slots, priorities = self._tree.find((stratum + rng.random(len(size))) * (total / size))
        keys = self._oldest_key + (slots - self._oldest_key) % self._capacity
        return keys, priorities / total

    def _priorities(self, td_errors: np.ndarray) -> np.ndarray:
        if len(td_errors) and not least(td_errors) >= 0.0:
            raise ValueError(f"absolute TD error {least(td_errors)} is refused: it must be a number >= 0")
        priorities: np.ndarray = (td_errors.astype(np.float64) + self._epsilon) ** self._exponent
        return priorities

    def _runs(self, begin_key: int, end_key: int) -> Iterator[tuple[int, int]]:
        """The keys [begin, end) in parts whose slots are consecutive."""
        while begin_key < end_key:
            turn = (begin_key // self._capacity + 1) * self._capacity
            yield begin_key, min(turn, end_key)
            begin_key = min(turn, end_key)


Selector = UniformSelector | PrioritizedSelector
"""A distribution over the keys that a shard holds."""


@lru_cache(maxsize=16)
def _strata(counts: tuple[int, ...], dtype: type = np.int64) -> tuple[np.ndarray, np.ndarray]:
    """For each of the M = sum(counts) draws: its stratum within its sample, and the size of that sample.

    A learner's requests repeat a few tuples of counts. Nobody may change the arrays.
    """
    size: np.ndarray = np.repeat(np.array(counts, dtype), counts)
    stratum = np.concatenate([np.arange(count, dtype=dtype) for count in counts]) if counts else size
    return stratum, size
