"""The priorities of a shard's slots: partial sums for proportional draws, and the minimum.

Owns the arrays of sums; must not import anything but numpy and `extremes`.
"""

import math

import numpy as np

from replay_service.extremes import largest, least


class SumTree:
    """Binary trees of partial sums under a wide root; all operations are vectorized over a batch.

    Slots form at most `root_width` blocks of 2^height slots. Within a block the sums are a binary tree; over
    the blocks they are one cumulative sum, computed only when a draw needs it. A parent is always recomputed
    from its two children in float64, never incremented, so no rounding error builds up. Empty slots hold 0.
    """

    def __init__(self, capacity: int, *, root_width: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; give at least 1")
        height = max(0, math.ceil(math.log2(capacity / root_width)))
        num_blocks = -(-capacity // (1 << height))
        self.capacity = capacity
        self._height = height
        # From leaves to blocks. The pages of np.zeros take no memory until they are written.
        self._levels = [np.zeros(num_blocks << h) for h in range(height, -1, -1)]
        self._leaves = self._levels[0]
        self._block_sums = self._levels[-1]
        # Each level but the last as pairs of children, with the level of their sums.
        self._pairs = [(a.reshape(-1, 2), b) for a, b in zip(self._levels, self._levels[1:], strict=False)]
        self._edges = np.zeros(num_blocks + 1)
        self._edges_stale = False
        self._total, self._total_stale = 0.0, False
        self._block_minimum = np.full(num_blocks, math.inf)
        self._block_minimum_stale = np.zeros(num_blocks, bool)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        helpers = (self._edges, self._block_minimum, self._block_minimum_stale)
        return sum(array.nbytes for array in (*self._levels, *helpers))

    @property
    def total(self) -> float:
        """Sum over all slots."""
        if self._total_stale:
            self._total, self._total_stale = float(self._block_sums.sum()), False
        return self._total

    @property
    def minimum(self) -> float:
        """Smallest priority above 0, inf for an empty tree.

        Each block keeps a lower bound, which is exact unless stale. Only blocks with the smallest bound are
        read again, so this usually costs one argmin over the blocks and one block of slots.
        """
        while True:
            block = int(self._block_minimum.argmin())
            if not self._block_minimum_stale[block]:
                return float(self._block_minimum[block])
            leaves = self._leaves[block << self._height : (block + 1) << self._height]
            smallest = least(leaves)
            # Looking past empty slots takes four times as long, and few blocks have any.
            self._block_minimum[block] = smallest or leaves.min(where=leaves > 0.0, initial=math.inf)
            self._block_minimum_stale[block] = False

    def concentration(self) -> tuple[float, float]:
        """Largest priority and the sum of squares; reads all slots, 1 ms for a million."""
        return float(self._leaves.max()), float(np.dot(self._leaves, self._leaves))

    def get(self, slots: np.ndarray) -> np.ndarray:
        """The priorities [M] float64 of slots [M], 0 for an empty slot."""
        return self._leaves.take(slots)

    def set(self, slots: np.ndarray, priorities: np.ndarray) -> None:
        """Sets slots [M] int64 to priorities [M]; if a slot is given twice, its last value counts.

        Raises ValueError for a priority that is NaN, infinite, negative or zero; IndexError for a slot
        outside [0, capacity).
        """
        if len(slots) == 0:
            return
        _checked_minimum(priorities)
        # As unsigned numbers negative slots are the largest.
        if largest(slots.view(np.uint64)) >= self.capacity:
            raise IndexError(f"a slot is outside [0, {self.capacity})")
        self._leaves[slots] = priorities
        nodes = slots.copy()
        children = np.empty((len(slots), 2))
        left, right = children.T
        for pairs, parents in self._pairs:
            nodes >>= 1
            # All nodes exist, so nothing is clipped; mode "raise" would copy the children once more.
            pairs.take(nodes, axis=0, out=children, mode="clip")
            parents[nodes] = left + right
        np.minimum.at(self._block_minimum, nodes, priorities)
        self._block_minimum_stale[nodes] = True
        self._edges_stale = self._total_stale = True

    def set_range(self, start: int, priorities: np.ndarray) -> None:
        """Sets the consecutive slots from `start` on to priorities [M], several times as fast as `set`.

        Raises as `set` does.
        """
        if len(priorities) == 0:
            return
        smallest = _checked_minimum(priorities)
        end = start + len(priorities)
        self._write_range(start, end, priorities)
        blocks = self._block_minimum[start >> self._height : ((end - 1) >> self._height) + 1]
        np.minimum(blocks, smallest, out=blocks)

    def clear_range(self, start: int, end: int) -> None:
        """Empties the slots [start, end). Raises IndexError outside [0, capacity)."""
        if end > start:
            self._write_range(start, end, 0.0)

    def find(self, prefix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The slots at which the running sum of priorities first exceeds prefix [M], each in [0, total].

        Returns slots [M] int64, none of them empty, and their priorities [M] float64.
        Raises ValueError for an empty tree.
        """
        if self._edges_stale:
            np.cumsum(self._block_sums, out=self._edges[1:])
            self._edges_stale = False
        total = self._edges[-1]
        if total <= 0.0:
            raise ValueError("nothing can be found: all priorities are 0")
        rest = np.minimum(prefix, np.nextafter(total, 0.0))
        node: np.ndarray = self._edges[1:].searchsorted(rest, side="right")
        rest -= self._edges.take(node)
        left = np.empty(len(node))  # filled in mode "clip", as in `set`
        for level in reversed(self._levels[:-1]):
            node += node
            level.take(node, out=left, mode="clip")
            turns_right = rest >= left
            left *= turns_right
            rest -= left
            node += turns_right
        priorities = self._leaves.take(node)
        # x < fl(l + r) does not imply fl(x - l) < r: in a tie `rest` can pass the last occupied slot, which
        # is then the next one to the left. One check here is cheaper than one at every level.
        while np.count_nonzero(priorities) < len(node):
            node -= priorities == 0.0
            priorities = self._leaves.take(node)
        return node, priorities

    def _write_range(self, start: int, end: int, priorities: np.ndarray | float) -> None:
        if start < 0 or end > self.capacity:
            raise IndexError(f"slots [{start}, {end}) are outside [0, {self.capacity})")
        self._leaves[start:end] = priorities
        for pairs, parents in self._pairs:
            start, end = start >> 1, (end + 1) >> 1
            children = pairs[start:end]
            np.add(children[:, 0], children[:, 1], out=parents[start:end])
        self._block_minimum_stale[start:end] = True
        self._edges_stale = self._total_stale = True


def _checked_minimum(priorities: np.ndarray) -> float:
    """The smallest of priorities [M]. Raises ValueError unless all are finite and above 0."""
    smallest: float = least(priorities)
    # NaN makes the minimum NaN, which fails the comparison.
    if not (smallest > 0.0 and largest(priorities) < math.inf):
        worst = priorities[~((priorities > 0.0) & (priorities < math.inf))][0]
        raise ValueError(f"priority {worst} is refused: priorities are finite and above 0")
    return smallest
