"""Stacks of frames, and where an episode begins in them."""

from __future__ import annotations

import numpy as np

from actors.envs.frame_stack import FrameStack


def test_a_stack_holds_the_newest_frames_and_repeats_the_first() -> None:
    stack = FrameStack(3, np.array([[1], [10]]))
    stack.push(np.array([[2], [20]]), np.array([False, False]))
    assert stack.observations[..., 0].tolist() == [[1, 1, 2], [10, 10, 20]]
    assert stack.followed_by(np.array([[9]]), np.array([1]))[..., 0].tolist() == [[10, 20, 9]]
    stack.push(np.array([[3], [30]]), np.array([False, True]))
    assert stack.observations[..., 0].tolist() == [[1, 2, 3], [30, 30, 30]]


def test_a_stack_of_one_is_the_frame_itself() -> None:
    stack = FrameStack(1, np.array([[1], [10]]))
    assert stack.observations.tolist() == [[1], [10]]
    stack.push(np.array([[2], [20]]), np.array([False, True]))
    assert stack.observations.tolist() == [[2], [20]]
    assert stack.followed_by(np.array([[9]]), np.array([1])).tolist() == [[9]]
