"""Greedy policies in plain numpy: a small MLP and a table.

Owns their forward passes; must not import anything but numpy.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

# The same as in learner.normalization.
NORMALIZED_LIMIT = np.float32(10.0)


class MlpPolicy:
    """Fully connected layers with ReLU between them.

    Flat weights: for each layer W [out, in] row by row, then b [out]; then, if observations are normalized,
    mean and inverse deviation of each value of a frame. Observations are flattened; pixels are divided by
    255.
    """

    def __init__(self, layer_sizes: Sequence[int], normalized: int = 0, *, pixels: bool = False) -> None:
        """layer_sizes: inputs, hidden layers, actions; normalized: number of values of a frame, 0 if raw.
        pixels: whether observations hold values from 0 to 255.

        Raises ValueError on fewer than two sizes, a size below 1, or inputs that are no whole frames.
        """
        self._sizes = tuple(layer_sizes)
        if len(self._sizes) < 2 or min(self._sizes) < 1:
            raise ValueError(
                f"layer sizes {self._sizes}: give inputs, hidden layers and actions, each at least 1"
            )
        if normalized and self._sizes[0] % normalized:
            raise ValueError(
                f"{self._sizes[0]} inputs are not a whole number of frames of {normalized} values"
            )
        self._normalized = normalized
        self._pixels = pixels
        self._moments: tuple[np.ndarray, np.ndarray] | None = None
        parameters = sum(inputs * outputs + outputs for inputs, outputs in pairwise(self._sizes))
        self.num_weights = parameters + 2 * normalized
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []
        self._buffers: list[np.ndarray] = []

    def load(self, flat_weights: np.ndarray) -> None:
        """Takes a copy of flat_weights [num_weights] float32. Raises ValueError on another shape."""
        _check_flat(flat_weights, self.num_weights)
        self._layers = []
        offset = 0
        for inputs, outputs in pairwise(self._sizes):
            weight = flat_weights[offset : offset + inputs * outputs].reshape(outputs, inputs)
            offset += inputs * outputs
            bias = flat_weights[offset : offset + outputs]
            offset += outputs
            # [in, out] in memory: for small batches faster than a transposed view.
            self._layers.append((weight.T.astype(np.float32, order="C"), bias.astype(np.float32)))
        if self._normalized:
            stack = self._sizes[0] // self._normalized
            mean, inverse = flat_weights[offset:].reshape(2, self._normalized)
            self._moments = np.tile(mean, stack), np.tile(inverse, stack)

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """[N, *obs] -> [N, A] float32. Raises ValueError on a wrong observation size or before `load`."""
        if not self._layers:
            raise ValueError("no weights loaded")
        num_lanes = len(observations)
        hidden = observations.reshape(num_lanes, -1)
        if hidden.shape[1] != self._sizes[0]:
            raise ValueError(f"observations {observations.shape} do not flatten to [N, {self._sizes[0]}]")
        if self._pixels:
            hidden = np.divide(hidden, np.float32(255), dtype=np.float32)
        else:
            hidden = hidden.astype(np.float32, copy=False)
        if self._moments is not None:
            # Operation by operation as in learner.normalization, so that both give the same bits.
            mean, inverse = self._moments
            hidden = np.clip((hidden - mean) * inverse, -NORMALIZED_LIMIT, NORMALIZED_LIMIT)
        if not self._buffers or len(self._buffers[0]) != num_lanes:
            self._buffers = [np.empty((num_lanes, size), np.float32) for size in self._sizes[1:-1]]
        for (weight, bias), buffer in zip(self._layers[:-1], self._buffers, strict=True):
            np.dot(hidden, weight, out=buffer)
            buffer += bias
            hidden = np.maximum(buffer, 0.0, out=buffer)
        weight, bias = self._layers[-1]
        q: np.ndarray = np.dot(hidden, weight)
        q += bias
        return q


class TablePolicy:
    """One Q-value for each state and action; flat weights are [S, A] row by row."""

    def __init__(self, num_states: int, num_actions: int) -> None:
        """Raises ValueError unless both are at least 1."""
        if num_states < 1 or num_actions < 1:
            raise ValueError(f"a table of {num_states} states and {num_actions} actions has no entry")
        self._shape = (num_states, num_actions)
        self.num_weights = num_states * num_actions
        self._table: np.ndarray | None = None

    def load(self, flat_weights: np.ndarray) -> None:
        """Takes a copy of flat_weights [S * A] float32. Raises ValueError on another shape."""
        _check_flat(flat_weights, self.num_weights)
        self._table = flat_weights.reshape(self._shape).astype(np.float32)

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        """States [N] int64 -> [N, A] float32. Raises ValueError on another shape or dtype, or unloaded."""
        if self._table is None:
            raise ValueError("no weights loaded")
        if observations.ndim != 1 or not np.issubdtype(observations.dtype, np.integer):
            raise ValueError(
                f"a table takes states [N] of integers, not {observations.shape} {observations.dtype}"
            )
        q: np.ndarray = self._table[observations]
        return q


def _check_flat(flat_weights: np.ndarray, size: int) -> None:
    if flat_weights.shape != (size,) or flat_weights.dtype != np.float32:
        raise ValueError(
            f"weights {flat_weights.shape} {flat_weights.dtype} do not fit: "
            f"this policy takes ({size},) float32"
        )
