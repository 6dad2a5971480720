"""Checks of single settings: what passes, and that a message names setting, value and cure."""

import math
from dataclasses import dataclass

import pytest

from replay_service.checks import above_zero, at_least, require, within


@dataclass(frozen=True)
class Settings:
    """A section of settings; None is one that is chosen later."""

    count: int | None = 3
    ratio: float = 0.5
    left_out: int | None = None


def test_settings_at_their_limits_and_settings_left_out_pass() -> None:
    at_least(3, "it", Settings(), "count", "left_out")
    above_zero("it", Settings(ratio=1e-9), "ratio", "left_out")
    within(0.0, 0.5, "it", Settings(), "ratio", "left_out", cure="give a share")
    require(True, "it.count", 3, "give another")


def test_the_first_setting_that_is_wrong_is_named_with_value_and_cure() -> None:
    with pytest.raises(ValueError, match=r"^it\.count is 3; give at least 4$"):
        at_least(4, "it", Settings(), "left_out", "count", "ratio")
    with pytest.raises(ValueError, match=r"^it\.count is -1; give 0 or more$"):
        at_least(0, "it", Settings(count=-1), "count")
    with pytest.raises(ValueError, match=r"^it\.count is 3; give a pair or more$"):
        at_least(4, "it", Settings(), "count", cure="give a pair or more")
    with pytest.raises(ValueError, match=r"^it\.ratio is 0\.0; it must be above 0$"):
        above_zero("it", Settings(ratio=0.0), "count", "ratio")
    with pytest.raises(ValueError, match=r"^it\.count is 3; give another$"):
        require(False, "it.count", 3, "give another")


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf])
def test_what_is_outside_of_both_limits_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^it\.ratio is .*; give a share$"):
        within(0.0, 1.0, "it", Settings(ratio=ratio), "ratio", cure="give a share")


def test_nan_is_above_and_below_nothing() -> None:
    with pytest.raises(ValueError, match=r"^it\.ratio is nan; "):
        above_zero("it", Settings(ratio=math.nan), "ratio")
    with pytest.raises(ValueError, match=r"^it\.ratio is nan; "):
        at_least(0, "it", Settings(ratio=math.nan), "ratio")
