"""Observations as frames: an array each, or a record of several arrays and a mask.

Owns how frames are laid out; must not know of spaces, policies or blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.core import EnvSpec
from actors.envs.errors import EnvError
from replay_service.block import ACTION_MASK, OBSERVATION, FrameField


@dataclass(frozen=True)
class Part:
    """One array of an observation, and its place in a frame.

    Attributes:
        path: the keys of Dicts and indices of Tuples that lead to it; empty if it is the whole observation.
        field: its dotted name, and its dtype and shape within a frame.
        raw_shape: its shape in the environment's own observation.
        starts: first value of each Discrete or MultiDiscrete component; empty for other spaces.
        sizes: number of values of each component that becomes one-hot; empty if the array is kept as it is.
        pixels: whether the space's bounds are 0 and 255, in which case networks divide the values by 255.
    """

    path: tuple[Any, ...]
    field: FrameField
    raw_shape: tuple[int, ...]
    starts: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    pixels: bool = False

    def of(self, observation: Any) -> Any:
        """This part of an observation, or of a vector environment's batch of observations."""
        for key in self.path:
            observation = observation[key]
        return observation

    @property
    def text(self) -> str:
        """Its dotted name in quotes, after a space; empty if it is the whole observation."""
        return f" {dotted(self.path)!r}" if self.path else ""

    def converted(self, values: np.ndarray) -> np.ndarray:
        """[K, *raw_shape] -> [K, *field.shape] of field.dtype."""
        if self.starts and any(self.starts):
            values = values - np.reshape(self.starts, self.raw_shape)
        if self.sizes:
            return _one_hot(values.reshape(len(values), -1), self.sizes)
        values = values.astype(self.field.dtype, copy=False)
        return values if values.shape[1:] == self.field.shape else values.reshape(-1, *self.field.shape)


class FrameMaker:
    """Makes frames of `spec.frame_dtype` from observations: plain arrays, or records of all parts."""

    def __init__(self, parts: tuple[Part, ...], spec: EnvSpec) -> None:
        # ALE returns a stack of one frame, an axis that spec's shapes leave out.
        self._parts = tuple(
            replace(part, field=field) for part, field in zip(parts, spec.frame_fields, strict=False)
        )
        self.spec = spec
        self._dtype = spec.frame_dtype

    def of_batch(
        self, observations: Any, masks: np.ndarray | None, lanes: np.ndarray | None = None
    ) -> np.ndarray:
        """A vector environment's observations -> frames [N]; with lanes [K], copies of their frames only.

        masks: [N, A] bool if the spec has an action mask, else None.
        """
        if self._dtype.names is None and lanes is None:
            return self._parts[0].converted(np.asarray(self._parts[0].of(observations)))
        arrays = [np.asarray(part.of(observations)) for part in self._parts]
        return self._assembled(arrays if lanes is None else [array[lanes] for array in arrays], masks, lanes)

    def require_own_arrays(self, finals: Sequence[Any], observations: Any, lanes: np.ndarray) -> None:
        """Raises EnvError if final observations of lanes [K] lie in memory that holds something else by now:
        the observations after the reset, or another lane's final one.
        """
        for part in self._parts:
            seen = [np.asarray(part.of(observations))]
            for lane in lanes:
                final = np.asarray(part.of(finals[lane]))
                if final.ndim and any(np.may_share_memory(final, other) for other in seen):
                    raise EnvError(
                        "a final observation in info['final_obs'] shares its memory with another observation "
                        "of the same step, which has overwritten it: let the vector environment copy it "
                        "before it resets, or set env.backend=sync"
                    )
                seen.append(final)

    def of_list(self, observations: Sequence[Any], masks: np.ndarray | None, lanes: np.ndarray) -> np.ndarray:
        """Frames [K] of lanes [K], from N single observations; masks as in of_batch."""
        arrays = [np.stack([part.of(observations[lane]) for lane in lanes]) for part in self._parts]
        return self._assembled(arrays, masks, lanes)

    def of_one(self, observation: Any, mask: np.ndarray | None) -> np.ndarray:
        """One observation and the mask [A] of its actions -> frames [1].

        Raises ValueError on a missing part, on another shape, and if a mask is missing or not wanted.
        """
        arrays = []
        for part in self._parts:
            try:
                array = np.asarray(part.of(observation))
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"the observation has no {dotted(part.path)!r}") from None
            if array.shape != part.raw_shape:
                which = f"'s {dotted(part.path)!r}" if part.path else ""
                raise ValueError(
                    f"the observation{which} has shape {array.shape}; this policy takes {part.raw_shape}"
                )
            arrays.append(array[None])
        if (mask is not None) != self.spec.action_mask:
            expected = (
                "needs the action mask of each observation: it was trained with"
                if mask is None
                else "takes no action mask: it was trained without"
            )
            raise ValueError(f"this policy {expected} info['action_mask']")
        return self._assembled(
            arrays, None if mask is None else checked_mask(mask, self.spec.num_actions)[None]
        )

    def _assembled(
        self, arrays: Sequence[np.ndarray], masks: np.ndarray | None, lanes: np.ndarray | None = None
    ) -> np.ndarray:
        """Frames of the parts' arrays, with the masks of `lanes` (None: all)."""
        if self._dtype.names is None:
            return self._parts[0].converted(arrays[0])
        records = np.empty(len(arrays[0]), self._dtype)
        for part, array in zip(self._parts, arrays, strict=True):
            records[part.field.name] = part.converted(array)
        if masks is not None:
            records[ACTION_MASK] = masks if lanes is None else masks[lanes]
        return records


def split(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames [N] or stacks [N, stack] -> observations, and the mask [N, A] of the newest frames, if any.

    Observations of one array are that array; those of several are records, see `actors.core.Policy`.
    """
    names = frames.dtype.names
    if names is None:
        return frames, None
    allowed = None
    if ACTION_MASK in names:
        allowed = frames[ACTION_MASK]
        allowed = allowed[:, -1] if allowed.ndim == 3 else allowed
    return (frames[OBSERVATION] if OBSERVATION in names else frames), allowed


def masked(q: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """q [N, A] with -inf for actions that are not allowed, so that no maximum or argmax finds them."""
    return q if allowed is None else np.where(allowed, q, np.float32(-np.inf))


def masks_of(info: Mapping[str, Any], num_envs: int, num_actions: int) -> np.ndarray:
    """[N, A] bool from a vector environment's info; lanes that gave no mask are allowed no action.

    By Gymnasium's convention "_action_mask" [N] says which lanes gave one; without it all did.
    Raises EnvError if masks are not of A actions.
    """
    masks = np.zeros((num_envs, num_actions), np.bool_)
    given = info.get(ACTION_MASK)
    if given is None:
        return masks
    present = np.asarray(info.get(f"_{ACTION_MASK}", np.ones(num_envs, np.bool_)))
    if not isinstance(given, np.ndarray) or given.dtype.hasobject:
        for lane in np.flatnonzero(present):
            masks[lane] = checked_mask(given[lane], num_actions)
        return masks
    if given.shape != masks.shape:
        raise EnvError(_wrong_mask(given.shape[1:], num_actions))
    return np.where(present[:, None], given != 0, masks)


def checked_mask(mask: Any, num_actions: int) -> np.ndarray:
    """A mask [A] as bools. Raises EnvError if it is of another shape."""
    array: np.ndarray = np.asarray(mask)
    if array.shape != (num_actions,):
        raise EnvError(_wrong_mask(array.shape, num_actions))
    return array.astype(np.bool_)


def _wrong_mask(shape: tuple[int, ...], num_actions: int) -> str:
    return (
        f"info['action_mask'] has shape {shape}; give one number for each of the {num_actions} actions "
        "(those of a discretized space are numbered flat), or set env.action_mask=false"
    )


def _one_hot(values: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """[K, M] counted from 0 -> [K, sum(sizes)] bool, component after component."""
    first = np.cumsum((0, *sizes[:-1]))
    hot = np.zeros((len(values), sum(sizes)), np.bool_)
    hot[np.arange(len(values))[:, None], values + first] = True
    return hot


def dotted(path: tuple[Any, ...]) -> str:
    """The name of an array at this path, as "camera.left"."""
    return ".".join(map(str, path))
