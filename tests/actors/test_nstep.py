"""n-step transitions: worked by hand, and against a loop that anyone can read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.nstep import NStepTransitions, n_step_transitions
from replay_service.block import TERMINATED, TRUNCATED

GAMMA = 0.5
BOTH = TERMINATED | TRUNCATED

# One lane with rewards 1, 2, 4, 8. `ends` has a letter for each step: "." goes on, "T" terminates,
# "L" (limit) truncates, "B" does both, "-" is an autoreset step and no transition.
# A transition is (reward, discount, steps, end, complete); None where there is none.
HAND_WORKED = [
    (1, "....", [(1, 0.5, 1, 0, True), (2, 0.5, 1, 0, True), (4, 0.5, 1, 0, True), (8, 0.5, 1, 0, True)]),
    (2, "....", [(2, 0.25, 2, 0, True), (4, 0.25, 2, 0, True), (8, 0.25, 2, 0, True), (8, 0.5, 1, 0, False)]),
    (
        3,
        "....",
        [(3, 0.125, 3, 0, True), (6, 0.125, 3, 0, True), (8, 0.25, 2, 0, False), (8, 0.5, 1, 0, False)],
    ),
    (
        5,
        "....",
        [(4, 0.0625, 4, 0, False), (6, 0.125, 3, 0, False), (8, 0.25, 2, 0, False), (8, 0.5, 1, 0, False)],
    ),
    (
        2,
        ".T..",
        [
            (2, 0.0, 2, TERMINATED, True),
            (2, 0.0, 1, TERMINATED, True),
            (8, 0.25, 2, 0, True),
            (8, 0.5, 1, 0, False),
        ],
    ),
    (
        2,
        ".L..",
        [
            (2, 0.25, 2, TRUNCATED, True),
            (2, 0.5, 1, TRUNCATED, True),
            (8, 0.25, 2, 0, True),
            (8, 0.5, 1, 0, False),
        ],
    ),
    (4, ".B-.", [(2, 0.0, 2, BOTH, True), (2, 0.0, 1, BOTH, True), None, (8, 0.5, 1, 0, False)]),
    (
        4,
        "..L-",
        [(3, 0.125, 3, TRUNCATED, True), (4, 0.25, 2, TRUNCATED, True), (4, 0.5, 1, TRUNCATED, True), None],
    ),
    # Episodes of one step; the last ends with the data and is complete all the same.
    (
        3,
        "TLTL",
        [
            (1, 0.0, 1, TERMINATED, True),
            (2, 0.5, 1, TRUNCATED, True),
            (4, 0.0, 1, TERMINATED, True),
            (8, 0.5, 1, TRUNCATED, True),
        ],
    ),
    (4, "T-L-", [(1, 0.0, 1, TERMINATED, True), None, (4, 0.5, 1, TRUNCATED, True), None]),
    # An episode that broke off: whatever needs the step at which it did so never becomes complete.
    (2, "..-.", [(2, 0.25, 2, 0, True), (2, 0.5, 1, 0, False), None, (8, 0.5, 1, 0, False)]),
    (3, ".-..", [(1, 0.5, 1, 0, False), None, (8, 0.25, 2, 0, False), (8, 0.5, 1, 0, False)]),
    # The end lies beyond n for the first transition.
    (2, "..T-", [(2, 0.25, 2, 0, True), (4, 0.0, 2, TERMINATED, True), (4, 0.0, 1, TERMINATED, True), None]),
    (
        5,
        "...T",
        [
            (4, 0.0, 4, TERMINATED, True),
            (6, 0.0, 3, TERMINATED, True),
            (8, 0.0, 2, TERMINATED, True),
            (8, 0.0, 1, TERMINATED, True),
        ],
    ),
]


def flags(ends: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """terminated, truncated, real, [T, 1] each."""
    letters = np.array(list(ends))[:, None]
    return np.isin(letters, ["T", "B"]), np.isin(letters, ["L", "B"]), letters != "-"


def transition(transitions: NStepTransitions, t: int, lane: int) -> tuple[float, float, int, int, bool]:
    return (
        float(transitions.reward[t, lane]),
        float(transitions.discount[t, lane]),
        int(transitions.steps[t, lane]),
        int(transitions.end[t, lane]),
        bool(transitions.complete[t, lane]),
    )


@pytest.mark.parametrize(("n_step", "ends", "expected"), HAND_WORKED)
def test_transitions_worked_by_hand(n_step: int, ends: str, expected: list[tuple[float, ...] | None]) -> None:
    reward = np.array([[1.0], [2.0], [4.0], [8.0]])
    transitions = n_step_transitions(reward, *flags(ends), n_step, GAMMA)
    for t, wanted in enumerate(expected):
        if wanted is None:
            assert not transitions.complete[t, 0]
        else:
            assert transition(transitions, t, 0) == wanted
            assert transitions.next_step[t, 0] == t + wanted[2]


def test_lanes_do_not_mix() -> None:
    by_lane = [flags("..T."), flags("L..T")]
    reward = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]])
    together = n_step_transitions(reward, *(np.hstack(pair) for pair in zip(*by_lane, strict=True)), 3, GAMMA)
    for lane in range(2):
        alone = n_step_transitions(reward[:, [lane]], *by_lane[lane], 3, GAMMA)
        assert [transition(together, t, lane) for t in range(4)] == [
            transition(alone, t, 0) for t in range(4)
        ]


def naive_transition(reward: list[float], ends: str, t: int, n_step: int, gamma: float) -> tuple[float, ...]:
    total, steps, end = 0.0, 0, 0
    while steps < n_step and t + steps < len(ends) and not end:
        total += gamma**steps * reward[t + steps]
        end = {".": 0, "T": TERMINATED, "L": TRUNCATED, "B": BOTH}[ends[t + steps]]
        steps += 1
    discount = 0.0 if end & TERMINATED else gamma**steps
    return total, discount, steps, end, bool(end) or steps == n_step


episode = st.builds(
    lambda length, end, fake: "." * length + end + fake,
    *[
        st.integers(0, 6),
        st.sampled_from("TLB"),
        st.sampled_from(["", "-"]),
    ],
)


@given(
    lanes=st.lists(st.lists(episode, min_size=8, max_size=8), min_size=1, max_size=3),
    num_steps=st.integers(0, 8),
    n_step=st.integers(1, 5),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
def test_transitions_equal_a_plain_loop(
    lanes: list[list[str]], num_steps: int, n_step: int, gamma: float, seed: int
) -> None:
    ends = ["".join(lane)[:num_steps] for lane in lanes]
    reward = np.random.default_rng(seed).normal(size=(num_steps, len(ends)))
    by_lane = [flags(lane) for lane in ends]
    transitions = n_step_transitions(
        reward, *(np.hstack(parts) for parts in zip(*by_lane, strict=True)), n_step, gamma
    )
    for lane, letters in enumerate(ends):
        for t, letter in enumerate(letters):
            if letter == "-":
                assert not transitions.complete[t, lane]
            else:
                expected = naive_transition(reward[:, lane].tolist(), letters, t, n_step, gamma)
                assert transition(transitions, t, lane) == pytest.approx(expected)
