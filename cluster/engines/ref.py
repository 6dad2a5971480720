"""References to values that calls will return.

Owns the type that stands for such a value; must not import anything but the standard library.
"""

from typing import Generic, TypeVar, cast

ValueT = TypeVar("ValueT")


class Ref(Generic[ValueT]):
    """A reference to a value that a call will return; hashable. Each engine has its own kind."""


def as_argument(ref: Ref[ValueT]) -> ValueT:
    """Types `ref` as its value, to pass it to a call: the called role gets the value."""
    return cast(ValueT, ref)
