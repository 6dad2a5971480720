"""References to values that calls will return.

Owns the type that stands for such a value; must not import anything but the standard library.
"""

from __future__ import annotations

from typing import Generic, TypeVar, cast

ValueT = TypeVar("ValueT")


class Ref(Generic[ValueT]):
    """Stands for a value that a call will return; hashable. Each engine has objects of its own for it."""


def passed(ref: Ref[ValueT]) -> ValueT:
    """`ref` as an argument of a call: the role that is called gets the value."""
    return cast(ValueT, ref)
