"""Validation of what environments return: shapes, dtypes, ranges and finite numbers.

Owns these checks; must not know of restarts, policies or blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from actors.core import BoundsReport
from actors.envs.observation_spaces import FLOAT32_WHOLE, parts_of
from actors.envs.observations import Part

_SLACK = 1e-5
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# A transition sums at most 64 rewards (actors.n_step) and stores the sum in float32.
REWARD_MAX = _FLOAT32_MAX / 64


class Validator:
    """Validates observations of one space, and the rewards that come with them.

    Shapes and dtypes are checked for one environment at a time, numbers for a whole vector environment.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        """space: the space of a single observation."""
        self._leaves = [_Leaf(part, part.of(space)) for part in parts_of(space)]

    def misfit(self, observation: Any) -> str | None:
        """The error in shapes or dtypes of a single observation, in words; None if there is none."""
        return next(filter(None, (leaf.misfit(observation) for leaf in self._leaves)), None)

    def problems(self, observations: Any, reward: np.ndarray | None = None) -> dict[int, str]:
        """Lane -> the error in its observation or in its reward [N], in words; empty if there is none."""
        found: dict[int, str] = {}
        for leaf in self._leaves:
            array = np.asarray(leaf.part.of(observations))
            invalid = leaf.invalid(array)
            if invalid is not None:
                for lane in np.flatnonzero(invalid.reshape(len(invalid), -1).any(axis=1)).tolist():
                    value = array[lane][invalid[lane]].flat[0]
                    limits = "" if isinstance(leaf.space, spaces.Box) else f", outside of {leaf.space}"
                    found[lane] = f"it returned {leaf.name} holds {value}{limits}"
        if reward is not None and reward.dtype.kind == "f":
            for lane in np.flatnonzero(~(np.abs(reward) <= REWARD_MAX)).tolist():
                found[lane] = f"it returned the reward {reward[lane]}, which float32 sums cannot hold"
        return found

    def bounds(self, observations: Any) -> BoundsReport:
        """How many observations of a batch leave the bounds of a Box, which is allowed, and one of them."""
        looked_at, example = 0, ""
        beyond: np.ndarray = np.zeros(1, np.bool_)
        for leaf in self._leaves:
            array = np.asarray(leaf.part.of(observations))
            looked_at = len(array)
            outside = leaf.beyond(array)
            if outside is None:
                continue
            lanes = outside.reshape(looked_at, -1).any(axis=1)
            beyond = np.logical_or(beyond, lanes)
            if not example:
                where = np.unravel_index(int(outside.argmax()), outside.shape)
                low, high = leaf.space.low[where[1:]], leaf.space.high[where[1:]]
                value = array[where]
                example = f"{leaf.name} holds {value:.6g}, beyond its bounds {low:g} and {high:g}"
        return BoundsReport(looked_at, int(np.count_nonzero(beyond)), example)


@dataclass(frozen=True)
class _Leaf:
    """One array of an observation, and its space."""

    part: Part
    space: Any

    @property
    def name(self) -> str:
        """The array as the subject of an error message."""
        path = ".".join(map(str, self.part.path))
        return f"an observation whose {path!r}" if path else "an observation that"

    def misfit(self, observation: Any) -> str | None:
        """The error in shape or dtype of this array of a single observation; None if there is none."""
        try:
            array = np.asarray(self.part.of(observation))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return f"it returned {self.name} is missing or no array ({type(error).__name__}: {error})"
        if array.shape != self.space.shape:
            return f"it returned {self.name} has shape {array.shape}, but its space has {self.space.shape}"
        dtype = np.dtype(self.space.dtype)
        if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
            return f"it returned {self.name} has dtype {array.dtype}, but its space has {dtype}"
        if array.dtype != dtype and dtype.kind in "iu" and not np.array_equal(array.astype(dtype), array):
            value = array[array.astype(dtype) != array].flat[0]
            return (
                f"it returned {self.name} holds {value}, which {dtype}, the dtype of its space, cannot hold; "
                "give the space a larger dtype, or let the environment clip what it returns"
            )
        return None

    def beyond(self, array: np.ndarray) -> np.ndarray | None:
        """[N, ...] bool: values of a batch [N, ...] beyond the bounds of a Box; None: none is."""
        if not isinstance(self.space, spaces.Box) or array.dtype.kind not in "iuf":
            return None
        low, high = self.space.low, self.space.high
        if array.dtype.kind == "f":  # rounding is no departure
            with np.errstate(over="ignore"):  # the largest float is as good as none
                low = low - np.float32(_SLACK) * np.maximum(1, abs(low))
                high = high + np.float32(_SLACK) * np.maximum(1, abs(high))
        outside = (array < low) | (array > high)
        return outside if np.count_nonzero(outside) else None

    def invalid(self, array: np.ndarray) -> np.ndarray | None:
        """[N, ...] bool: values of a batch [N, ...] that are not finite or out of range; None: none is.

        Floats only have to be finite, and whole numbers such as float32 holds: many environments leave the
        bounds of their Box, which does no harm.
        """
        match self.space:
            case spaces.Discrete():
                low, size = np.asarray(self.space.start), np.asarray(self.space.n)
            case spaces.MultiDiscrete():
                low, size = self.space.start, self.space.nvec
            case _:
                if array.dtype.kind in "iu" and array.itemsize > 2:
                    # A frame is float32, which holds smaller whole numbers exactly.
                    valid = (array >= -FLOAT32_WHOLE) & (array <= FLOAT32_WHOLE)
                    return None if np.count_nonzero(valid) == valid.size else ~valid
                if array.dtype.kind != "f":
                    return None
                # A frame is float32: a number beyond its range would become infinite there.
                valid = np.isfinite(array) if array.itemsize <= 4 else np.abs(array) <= _FLOAT32_MAX
                return None if np.count_nonzero(valid) == valid.size else ~valid
        # As an unsigned number, what lies below `low` is far above any size.
        valid = (array - low).astype(np.int64, copy=False).view(np.uint64) < size.astype(np.uint64)
        return None if np.count_nonzero(valid) == valid.size else ~valid


def is_finite(frames: np.ndarray) -> bool:
    """Whether all floats of frames are finite, be they plain arrays or records."""
    names = frames.dtype.names
    fields = [frames] if names is None else [frames[name] for name in names]
    return all(bool(np.isfinite(field).all()) for field in fields if field.dtype.kind == "f")
