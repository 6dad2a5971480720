"""Records of several arrays and action masks: what is made of observations and infos.

Tests actors/envs/observations.py, actors/envs/observation_spaces.py, and the frame fields of actors/core.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from actors.core import EnvSpec
from actors.envs.errors import EnvError
from actors.envs.frame_stack import FrameStack
from actors.envs.observation_spaces import parts_of
from actors.envs.observations import FrameMaker, masked, masks_of, split
from replay_service.block import FrameField

SPACE = spaces.Dict(
    {"n": spaces.MultiDiscrete([2, 3], start=[5, -1]), "x": spaces.Box(-9, 9, (2,), np.float64)}
)
PARTS = (FrameField("n", "|b1", (5,)), FrameField("x", "<f4", (2,)))
SPEC = EnvSpec((), "|V", None, 3, 2, "sync", "NextStep", None, None, PARTS, action_mask=True)
BATCH = {"n": np.array([[5, -1], [6, 1]]), "x": np.array([[0.5, 1.5], [2.5, 3.5]])}
MASKS = np.array([[True, False, True], [False, True, False]])


def maker() -> FrameMaker:
    return FrameMaker(parts_of(SPACE), SPEC)


def test_a_record_holds_every_part_and_the_mask() -> None:
    assert [part.field for part in parts_of(SPACE)] == list(PARTS)
    frames = maker().of_batch(BATCH, MASKS)
    assert frames.dtype == SPEC.frame_dtype
    assert [field.name for field in SPEC.frame_fields] == ["observation.n", "observation.x", "action_mask"]
    assert frames["observation.n"].astype(int).tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]
    assert frames["observation.x"].tolist() == BATCH["x"].tolist()
    assert frames["action_mask"].tolist() == MASKS.tolist()


def test_batches_lists_and_single_observations_make_the_same_frames() -> None:
    whole = maker().of_batch(BATCH, MASKS)
    singles = [{name: array[lane] for name, array in BATCH.items()} for lane in range(2)]
    assert (maker().of_list(singles, MASKS, np.arange(2)) == whole).all()
    for one in (
        maker().of_list(singles, MASKS, np.array([1])),
        maker().of_batch(BATCH, MASKS, np.array([1])),
    ):
        assert (one == whole[1:]).all()
    for lane in range(2):
        assert (maker().of_one(singles[lane], MASKS[lane]) == whole[lane : lane + 1]).all()


def test_a_policy_sees_the_newest_mask_of_a_stack() -> None:
    frames = maker().of_batch(BATCH, MASKS)
    stack = FrameStack(2, frames)
    stack.push(maker().of_batch(BATCH, MASKS[::-1]), np.zeros(2, np.bool_))
    observations, allowed = split(stack.observations)
    assert observations.shape == (2, 2)
    assert allowed is not None
    assert allowed.tolist() == MASKS[::-1].tolist()


def test_a_plain_observation_beside_a_mask_comes_as_an_array() -> None:
    spec = EnvSpec((2,), "<f4", None, 3, 1, "sync", "NextStep", None, None, action_mask=True)
    frames = FrameMaker(parts_of(SPACE["x"]), spec).of_batch(BATCH["x"], MASKS)
    observations, allowed = split(frames)
    assert (observations.dtype, observations.tolist()) == (np.float32, BATCH["x"].tolist())
    assert allowed is not None
    assert (split(observations)[0], split(observations)[1]) == (pytest.approx(observations), None)


def test_what_is_not_allowed_is_no_maximum() -> None:
    q = np.array([[-3.0, 5.0, -4.0], [9.0, -1.0, 9.0]], np.float32)
    values = masked(q, MASKS)
    assert (values.dtype, values.max(axis=1).tolist()) == (np.float32, [-3.0, -1.0])
    assert values.argmax(axis=1).tolist() == [0, 1]
    assert masked(q, None) is q


@pytest.mark.parametrize(
    ("given", "present", "expected"),
    [
        (np.array([[1, 0], [0, 1]], np.int8), None, [[1, 0], [0, 1]]),
        (np.array([[1, 0], [0, 0]], np.int8), [True, False], [[1, 0], [0, 0]]),
        # A lane that gave nothing may hold what it gave at another step.
        (np.array([[True, False], [True, True]]), [True, False], [[1, 0], [0, 0]]),
        (np.array([[1, 1], None], dtype=object), [True, False], [[1, 1], [0, 0]]),
        ([[1, 1], [0, 1]], None, [[1, 1], [0, 1]]),
    ],
)
def test_masks_of_a_vector_info(given: Any, present: list[bool] | None, expected: list[list[int]]) -> None:
    if isinstance(given, np.ndarray) and given.dtype == object:
        given = np.array([[1, 1], None], dtype=object)
    info = {"action_mask": given} | ({} if present is None else {"_action_mask": np.array(present)})
    assert masks_of(info, 2, 2).astype(int).tolist() == expected


def test_no_mask_in_an_info_allows_nothing() -> None:
    assert not masks_of({}, 2, 3).any()


@pytest.mark.parametrize("given", [np.ones((2, 3)), np.ones(2), [[1, 1], [1]]])
def test_a_mask_of_other_actions_is_refused(given: Any) -> None:
    with pytest.raises(EnvError, match=r"action_mask.* has shape .*one number for each of the 2 actions"):
        masks_of({"action_mask": given}, 2, 2)


@pytest.mark.parametrize(("low", "high"), [(0, 2**24 + 1), (-(2**24) - 1, 0), (-(2**63), 2**63 - 1)])
def test_whole_numbers_that_float32_would_alter_are_refused(low: int, high: int) -> None:
    largest = max(-low, high)
    with pytest.raises(EnvError, match=rf"'t' of dtype int64 bounded by {largest}; .*float32.*: give"):
        parts_of(spaces.Dict({"t": spaces.Box(low, high, (1,), np.int64)}))
    (part,) = parts_of(spaces.Box(-(2**24), 2**24, (1,), np.int64))
    assert part.converted(np.array([[2**24], [-(2**24) + 1]])).tolist() == [[2.0**24], [-(2.0**24) + 1]]


def finals_of(lanes: int, own: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Observations [lanes, 2] after a reset, and final ones: copies, views of them, or one array for all."""
    after = np.arange(2.0 * lanes, dtype=np.float32).reshape(lanes, 2)
    shared = np.zeros(2, np.float32)
    return after, [
        {"copy": after[lane].copy(), "view": after[lane], "one": shared}[own] for lane in range(lanes)
    ]


@pytest.mark.parametrize(
    ("own", "lanes", "wrong"), [("copy", 3, False), ("view", 1, True), ("one", 2, True), ("one", 1, False)]
)
def test_final_observations_in_memory_that_was_overwritten_are_refused(
    own: str, lanes: int, wrong: bool
) -> None:
    space = spaces.Box(-9, 9, (2,))
    spec = EnvSpec((2,), "<f4", None, 3, 1, "native", "SameStep", None, None)
    after, finals = finals_of(lanes, own)
    made = FrameMaker(parts_of(space), spec)
    if wrong:
        with pytest.raises(EnvError, match="shares its memory with another observation of the same step"):
            made.require_own_arrays(finals, after, np.arange(lanes))
    else:
        made.require_own_arrays(finals, after, np.arange(lanes))


def test_an_aliased_part_of_a_record_is_found() -> None:
    after = {name: array.copy() for name, array in BATCH.items()}
    finals = [{"n": after["n"][lane].copy(), "x": after["x"][lane]} for lane in range(2)]
    with pytest.raises(EnvError, match=r"info\['final_obs'\] shares its memory"):
        maker().require_own_arrays(finals, after, np.array([1]))
