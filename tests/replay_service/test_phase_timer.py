"""Seconds by phase."""

from __future__ import annotations

from unittest import mock

import pytest

from replay_service.phase_timer import PhaseTimer


def test_every_second_belongs_to_one_phase() -> None:
    with mock.patch("replay_service.phase_timer.perf_counter", side_effect=[0.0, 1.0, 3.0, 6.0, 10.0, 15.0]):
        timer = PhaseTimer("idle", "act", "env")
        timer.enter("act")
        timer.enter("env")
        timer.enter("act")
        assert timer.totals() == {"idle": 1.0, "act": 2.0 + 4.0, "env": 3.0}
        assert timer.take() == {"idle": 1.0, "act": 2.0 + 4.0 + 5.0, "env": 3.0}


def test_a_take_begins_again_at_zero_and_a_shift_keeps_the_sum() -> None:
    with mock.patch("replay_service.phase_timer.perf_counter", side_effect=[0.0, 4.0, 5.0]):
        timer = PhaseTimer("draw", "wait")
        timer.take()
        timer.shift(0.25, "draw", "wait")
        assert timer.take() == {"draw": 0.75, "wait": 0.25}


def test_an_unknown_phase_is_a_mistake() -> None:
    timer = PhaseTimer("idle")
    timer.enter("sleep")
    with pytest.raises(KeyError):
        timer.enter("idle")
