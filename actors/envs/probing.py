"""What an environment shows only when it is stepped: action masks, numbers too large, seeds without effect.

Owns these first steps; must not know of policies, transitions or blocks.
"""

from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np

from actors.core import EnvSpec
from actors.envs.errors import EnvError, EnvFailed
from actors.envs.guarded_vector import GuardedVector
from actors.envs.observations import FLOAT32_WHOLE, Part, masks_of, parts_of
from replay_service.block import ACTION_MASK

_STEPS = 50
_REPEATED_STEPS = 10
_SECONDS = 5.0
_SEED = 0


@dataclass(frozen=True)
class Seen:
    """What the first steps showed. masks: whether any of them came with info["action_mask"].

    repeats: whether the same seed and actions gave the same observations again.
    """

    masks: bool
    repeats: bool


@dataclass(frozen=True, eq=False)
class _Walk:
    """Observations of one lane, one after another, each as its arrays [*raw_shape]."""

    observations: list[list[np.ndarray]]
    masks: bool


def look(vector: GuardedVector, spec: EnvSpec) -> Seen:
    """Makes 50 random steps (of those that masks allow), or as many as 5 seconds allow.

    Raises EnvError for a mask of a wrong shape, for numbers that float32 would merge, and if the environment
    fails again and again.
    """
    parts = parts_of(vector.env.single_observation_space)
    try:
        first = _walk(vector, spec, parts, _STEPS)
        again = _walk(vector, spec, parts, min(_REPEATED_STEPS, len(first.observations) - 1))
    except EnvFailed as failure:
        raise EnvError(f"it fails within its first {_STEPS} steps:\n{failure}") from None
    for part, values in zip(parts, zip(*first.observations, strict=True), strict=True):
        _require_distinct(part, np.array(values))
    repeats = all(
        np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        for before, after in zip(first.observations, again.observations, strict=False)
        for one, other in zip(before, after, strict=True)
    )
    return Seen(masks=first.masks, repeats=repeats)


def _walk(vector: GuardedVector, spec: EnvSpec, parts: tuple[Part, ...], steps: int) -> _Walk:
    rng = np.random.default_rng(_SEED)
    first_action = int(getattr(vector.env.single_action_space, "start", 0))
    ended = np.zeros(vector.env.num_envs, np.bool_)
    observations, info = vector.reset(np.full(vector.env.num_envs, _SEED))
    walk, masks, deadline = [_arrays(parts, observations)], False, monotonic() + _SECONDS
    for _ in range(steps):
        allowed = np.ones((vector.env.num_envs, spec.num_actions), np.bool_)
        if ACTION_MASK in info:
            masks = True
            given = masks_of(info, vector.env.num_envs, spec.num_actions)
            allowed = np.where(given.any(axis=1, keepdims=True), given, allowed)
        actions = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(axis=1)
        vector.begin(actions + first_action)
        observations, _, terminated, truncated, info, _ = vector.finish(ended)
        ended = terminated | truncated
        walk.append(_arrays(parts, observations))
        if monotonic() > deadline:
            break
    return _Walk(walk, masks or ACTION_MASK in info)


def _arrays(parts: tuple[Part, ...], observations: Any) -> list[np.ndarray]:
    return [np.array(part.of(observations)[0]) for part in parts]


def _require_distinct(part: Part, values: np.ndarray) -> None:
    """Raises EnvError if float32 would merge different values [T, *raw_shape] of a number beyond 2**24."""
    if values.dtype != np.float64:
        return
    columns = values.reshape(len(values), -1).T
    for column in columns[(np.abs(columns) > FLOAT32_WHOLE).any(axis=1)]:
        distinct = np.unique(column)
        merged = np.flatnonzero(np.diff(distinct.astype(np.float32)) == 0.0)
        if len(merged):
            one, other = distinct[merged[0]], distinct[merged[0] + 1]
            raise EnvError(
                f"its observations{part.text} hold {one!r} and {other!r}, which float32, as which they are "
                "stored, cannot tell apart: let the environment subtract a constant first (for a time, its "
                "own begin), or leave the number out"
            )
