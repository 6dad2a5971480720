"""Smallest and largest items: the same as numpy's min and max, with NaN and for truth values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from replay_service.extremes import largest, least

DTYPES = ("?", "u1", "i4", "u4", "i8", "u8", "f4", "f8")


@given(st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, st.integers(1, 40))))
def test_same_as_min_and_max(array: np.ndarray) -> None:
    # -0.0 == 0.0: which of the two is found does not matter to a check.
    assert least(array) == array.min() or math.isnan(array.min())
    assert largest(array) == array.max() or math.isnan(array.max())


@pytest.mark.parametrize("place", [0, 3, 5])
def test_nan_is_both(place: int) -> None:
    array = np.array([1.0, -math.inf, math.inf, 2.0, 0.0, 7.0])
    array[place] = math.nan
    assert math.isnan(least(array))
    assert math.isnan(largest(array))


def test_nothing_has_no_extremes() -> None:
    for extreme in (least, largest):
        with pytest.raises(ValueError, match="empty"):
            extreme(np.empty(0))
