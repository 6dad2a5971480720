"""Observation spaces: which of them work, and the arrays that their observations consist of.

Owns these rules; must not know of frames in memory, policies or blocks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from actors.envs.errors import EnvError
from actors.envs.observations import Part, dotted
from replay_service.block import FrameField

FLOAT32_WHOLE = 2**24
"""float32 holds all whole numbers from minus this to this."""


def parts_of(space: spaces.Space[Any]) -> tuple[Part, ...]:
    """The arrays of an observation space, in its own order.

    uint8 and bool arrays keep their dtype, other numbers become float32. Discrete and MultiDiscrete values
    become one-hot, unless the whole observation is Discrete: it stays a state number.

    Raises EnvError for a space without a fixed size, or with integers that float32 would alter; the message
    names the cure.
    """
    if isinstance(space, spaces.Discrete):
        return (Part((), FrameField("", "<i8", ()), (), (int(space.start),)),)
    parts = tuple(_parts(space, ()))
    names = [part.field.name for part in parts]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise EnvError(f"observations with two arrays named {sorted(twice)[0]!r}; rename a key")
    if not parts:
        raise EnvError(f"observations {space}, which hold nothing; give at least one array")
    return parts


def _parts(space: spaces.Space[Any], path: tuple[Any, ...]) -> Iterator[Part]:
    name = dotted(path)
    match space:
        case spaces.Dict():
            for key, inner in space.spaces.items():
                yield from _parts(inner, (*path, key))
        case spaces.Tuple():
            for index, inner in enumerate(space.spaces):
                yield from _parts(inner, (*path, index))
        case spaces.Discrete():
            size = int(space.n)
            yield Part(path, FrameField(name, "|b1", (size,)), (), (int(space.start),), (size,))
        case spaces.MultiDiscrete():
            sizes = tuple(int(size) for size in space.nvec.ravel())
            starts = tuple(int(start) for start in space.start.ravel())
            yield Part(path, FrameField(name, "|b1", (sum(sizes),)), space.nvec.shape, starts, sizes)
        case spaces.Box() | spaces.MultiBinary() if space.shape is not None and 0 not in space.shape:
            shape = tuple(space.shape)
            if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
                _require_exact(space, name)
            yield Part(path, FrameField(name, _stored_dtype(space), shape), shape, pixels=_has_pixels(space))
        case _:
            where = f" {name!r}:" if path else ""
            raise EnvError(
                f"observations{where} {space}, which have no fixed size; leave a key of a Dict out by "
                "env.drop_observation_keys, or wrap the environment so that it returns Box, Discrete, "
                "MultiDiscrete, MultiBinary, Dict or Tuple instead"
            )


def _require_exact(space: spaces.Box, name: str) -> None:
    """Raises EnvError if whole numbers within the bounds would be altered as float32."""
    largest = max(abs(int(space.low.min())), abs(int(space.high.max())))
    if largest > FLOAT32_WHOLE:
        raise EnvError(
            f"observations{f' {name!r}' if name else ''} of dtype {space.dtype} bounded by {largest}; "
            f"float32, as which they are stored, holds whole numbers up to {FLOAT32_WHOLE} only: give the "
            "space the bounds of its real values, or wrap the environment so that it returns smaller numbers"
        )


def _stored_dtype(space: spaces.Space[Any]) -> str:
    """A byte stays a byte; networks compute in float32, so further digits would be lost anyway."""
    if isinstance(space, spaces.MultiBinary) or space.dtype == np.bool_:
        return "|b1"
    return "|u1" if space.dtype == np.uint8 else "<f4"


def _has_pixels(space: spaces.Space[Any]) -> bool:
    """Whether bounds are 0 and 255 throughout: other bytes are codes or counters, which stay as they are."""
    return isinstance(space, spaces.Box) and bool((space.low == 0).all() and (space.high == 255).all())
