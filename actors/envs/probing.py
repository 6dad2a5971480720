"""What an environment shows only when it is stepped: masks, too large numbers, useless seeds, speed, ends.

Owns these first steps; must not know of policies, transitions or blocks.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from actors.core import PROBE_STEPS, BoundsReport, EnvSpec
from actors.envs.errors import EnvError, EnvFailed
from actors.envs.guarded_vector import GuardedVector
from actors.envs.observation_spaces import FLOAT32_WHOLE, parts_of
from actors.envs.observations import Part, masks_of
from actors.envs.validation import Validator
from replay_service.block import ACTION_MASK, OBSERVATION

_STEPS = 50
_REPEATED_STEPS = 10
_SECONDS = 5.0
_LONG_PROBE_STEPS, _LONG_PROBE_SECONDS = 5_000, 2.0
"""The most random steps until an episode ends, if they take no longer: MinAtar's Freeway ends after 2,501."""
_SEED = 0
_FEWEST_PIXELS = 36
_LARGEST_CODE = 15
SAID_AFTER_SECONDS = 10.0
_PAUSE_GROWTH = 3.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What the first steps showed. masks: whether any of them came with info["action_mask"].

    repeats: whether the same seed and actions gave the same observations again. step_seconds: mean duration
    of a step without the longest one, in which much is done for the first time. ends: whether an episode
    ended; None if time ran out before enough steps were made, or if the environment has a step limit. codes:
    names of arrays with the bounds of pixels that hold none, see `_holds_codes`. bounds: see BoundsReport.
    """

    masks: bool
    repeats: bool
    step_seconds: float
    ends: bool | None
    codes: tuple[str, ...]
    bounds: BoundsReport


@dataclass(frozen=True, eq=False)
class _Walk:
    """Observations of one lane, one after another, each as its arrays [*raw_shape].

    step_seconds, bounds: see Seen. ends: whether an episode ended. whole: whether all steps wanted were made.
    """

    observations: list[list[np.ndarray]]
    masks: bool
    step_seconds: float
    ends: bool
    whole: bool
    bounds: BoundsReport


def look(vector: GuardedVector, spec: EnvSpec) -> Seen:
    """Makes 50 random steps (of those that masks allow), or as many as 5 seconds allow. If no episode ends in
    them and the environment states no limit, makes 1,000 steps or as many as take 2 seconds, at most 5,000,
    for 5 seconds again.

    Raises EnvError for a mask of a wrong shape, for numbers that float32 would merge, and if the environment
    fails again and again.
    """
    parts = parts_of(vector.env.single_observation_space)
    try:
        first = _walk(vector, spec, parts, _STEPS)
        again = _walk(vector, spec, parts, min(_REPEATED_STEPS, len(first.observations) - 1))
        ends = _ends(vector, spec, first)
    except EnvFailed as failure:
        raise EnvError(f"it fails within its first {_STEPS} steps:\n{failure}") from None
    for part, values in zip(parts, zip(*first.observations, strict=True), strict=True):
        _require_distinct(part, np.array(values))
    repeats = all(
        np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        for before, after in zip(first.observations, again.observations, strict=False)
        for one, other in zip(before, after, strict=True)
    )
    codes = tuple(
        part.field.name or OBSERVATION
        for part, values in zip(parts, zip(*first.observations, strict=True), strict=True)
        if _holds_codes(part, np.array(values))
    )
    return Seen(
        masks=first.masks,
        repeats=repeats,
        step_seconds=first.step_seconds,
        ends=ends,
        codes=codes,
        bounds=first.bounds,
    )


@contextmanager
def waiting_is_said(name: str) -> Iterator[None]:
    """Says after ten seconds, and then ever more rarely, that an environment is still being tried out."""
    done = Event()

    def say() -> None:
        began, pause = monotonic(), SAID_AFTER_SECONDS
        while not done.wait(pause):
            _logger.warning(
                "%s has not come through its first steps for %.0f s: it is slow, or hangs in __init__, "
                "reset() or step(). Ctrl-C ends this",
                name,
                monotonic() - began,
            )
            pause *= _PAUSE_GROWTH

    thread = Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _holds_codes(part: Part, values: np.ndarray) -> bool:
    """Whether a small picture with bounds 0 and 255 holds small numbers only, values [T, *raw_shape].

    Grid worlds declare these bounds for codes of objects and colors, as MiniGrid does. Divided by 255, they
    would hardly differ.
    """
    small = len(part.raw_shape) < 2 or sorted(part.raw_shape)[-2] < _FEWEST_PIXELS
    return part.pixels and small and 0 < values.max() <= _LARGEST_CODE


def _ends(vector: GuardedVector, spec: EnvSpec, first: _Walk) -> bool | None:
    """Whether an episode ends within 1,000 random steps, or as many as take 2 seconds, at most 5,000; None if
    the environment has a limit, or for want of time."""
    if spec.max_episode_steps is not None:
        return None
    if first.ends or not first.whole:
        return first.ends or None
    steps = min(_LONG_PROBE_STEPS, max(PROBE_STEPS, int(_LONG_PROBE_SECONDS / max(first.step_seconds, 1e-6))))
    long = _walk(vector, spec, (), steps, to_first_end=True)
    return True if long.ends else False if long.whole else None


def _walk(
    vector: GuardedVector, spec: EnvSpec, parts: tuple[Part, ...], steps: int, *, to_first_end: bool = False
) -> _Walk:
    """Makes random steps from a reset on. to_first_end: no further than to the end of an episode."""
    rng = np.random.default_rng(_SEED)
    first_action = int(getattr(vector.env.single_action_space, "start", 0))
    ended, validator = np.zeros(vector.env.num_envs, np.bool_), Validator(vector.env.single_observation_space)
    observations, info = vector.reset(np.full(vector.env.num_envs, _SEED))
    walk, masks, deadline = [_arrays(parts, observations)], False, monotonic() + _SECONDS
    seconds: list[float] = []
    any_ended, bounds = False, validator.bounds(observations)
    for _ in range(steps):
        allowed = np.ones((vector.env.num_envs, spec.num_actions), np.bool_)
        if ACTION_MASK in info:
            masks = True
            given = masks_of(info, vector.env.num_envs, spec.num_actions)
            allowed = np.where(given.any(axis=1, keepdims=True), given, allowed)
        actions = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(axis=1)
        began = perf_counter()
        vector.begin(actions + first_action)
        observations, _, terminated, truncated, info, _ = vector.finish(ended)
        seconds.append(perf_counter() - began)
        ended = terminated | truncated
        any_ended |= bool(ended.any())
        walk.append(_arrays(parts, observations))
        bounds += validator.bounds(observations)
        if monotonic() > deadline or (to_first_end and any_ended):
            break
    mean = (sum(seconds) - max(seconds)) / (len(seconds) - 1) if len(seconds) > 1 else sum(seconds)
    return _Walk(walk, masks or ACTION_MASK in info, mean, any_ended, len(seconds) == steps, bounds)


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
