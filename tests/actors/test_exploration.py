"""Epsilon and what it does to actions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.config import ActorsConfig, LadderConfig
from actors.exploration import Exploration, epsilon_greedy, ladder_epsilons, linear_epsilon


@pytest.mark.parametrize(
    ("env_steps", "epsilon"), [(0, 1.0), (250, 0.775), (500, 0.55), (1000, 0.1), (10**9, 0.1)]
)
def test_epsilon_falls_linearly_and_stays(env_steps: int, epsilon: float) -> None:
    config = ActorsConfig(epsilon_start=1.0, epsilon_end=0.1, epsilon_decay_env_steps=1000)
    assert linear_epsilon(config, env_steps) == pytest.approx(epsilon)


def test_the_ladder_spans_base_to_base_to_the_one_plus_alpha() -> None:
    epsilons = ladder_epsilons(LadderConfig(base=0.4, alpha=7.0), 5)
    assert epsilons == pytest.approx([0.4 ** (1 + 7 * i / 4) for i in range(5)])


def test_a_ladder_of_one_lane_is_its_base() -> None:
    assert ladder_epsilons(LadderConfig(base=0.4, alpha=7.0), 1).tolist() == [0.4]


def test_without_exploration_the_first_best_action_is_taken() -> None:
    q = np.array([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0], [3.0, 3.0, 3.0]])
    assert epsilon_greedy(q, 0.0, np.random.default_rng(0)).tolist() == [1, 0, 0]


def test_action_frequencies() -> None:
    """Lane i is greedy with 1 - e + e/A and takes each other with e/A, within 5 standard deviations."""
    num_draws, num_actions = 20_000, 4
    epsilon = np.array([0.0, 0.1, 0.5, 1.0])
    q = np.tile([0.0, 0.0, 1.0, 0.0], (len(epsilon), 1))
    rng = np.random.default_rng(1)
    actions = np.array([epsilon_greedy(q, epsilon, rng) for _ in range(num_draws)])
    for lane, e in enumerate(epsilon):
        for action in range(num_actions):
            p = e / num_actions + (1 - e) * (action == 2)
            tolerance = 5 * math.sqrt(p * (1 - p) / num_draws)
            assert abs(float(np.mean(actions[:, lane] == action)) - p) <= tolerance


def test_lanes_explore_independently() -> None:
    """Each takes the worse action with 1/2 * 1/2; both at once with the square of that."""
    num_draws, p = 20_000, 1 / 16
    q = np.array([[1.0, 0.0], [1.0, 0.0]])
    rng = np.random.default_rng(2)
    actions = np.array([epsilon_greedy(q, 0.5, rng) for _ in range(num_draws)])
    both = float(np.mean(actions.all(axis=1)))
    assert abs(both - p) <= 5 * math.sqrt(p * (1 - p) / num_draws)


def test_random_actions_are_uniform_among_the_allowed() -> None:
    allowed = np.array([[True, False, True, True], [False, False, True, False]])
    rng = np.random.default_rng(0)
    q = np.where(allowed, 0.0, -np.inf).astype(np.float32)
    drawn = np.array([epsilon_greedy(q, 1.0, rng, allowed) for _ in range(6_000)])
    assert (drawn[:, 1] == 2).all()
    counts = np.bincount(drawn[:, 0], minlength=4)
    assert counts[1] == 0
    # Chi-square of three equal chances, 2 degrees of freedom: above 18.4 once in 10,000 seeds.
    assert (np.square(counts[[0, 2, 3]] - 2_000) / 2_000).sum() < 18.4


def test_a_mask_that_allows_everything_changes_nothing() -> None:
    q = np.random.default_rng(1).normal(size=(64, 5)).astype(np.float32)
    plain = epsilon_greedy(q, 0.5, np.random.default_rng(2))
    same = epsilon_greedy(q, 0.5, np.random.default_rng(2), np.ones(q.shape, np.bool_))
    assert (plain == same).all()


@pytest.mark.parametrize("masked", [False, True])
def test_a_chunk_drawn_at_once_acts_as_its_steps_drawn_one_by_one(masked: bool) -> None:
    steps, num_lanes, num_actions = 50, 6, 4
    epsilon = np.linspace(0.0, 1.0, num_lanes)
    given = np.random.default_rng(0)
    q = given.normal(size=(steps, num_lanes, num_actions)).astype(np.float32)
    allowed = given.random((steps, num_lanes, num_actions)) < 0.5
    allowed[..., 0] = True
    one_by_one, at_once = np.random.default_rng(1), np.random.default_rng(1)
    chunk = Exploration(steps, num_lanes, num_actions, epsilon, at_once)
    for t in range(steps):
        mask = allowed[t] if masked else None
        q_t = np.where(allowed[t], q[t], -np.inf) if masked else q[t]
        expected = epsilon_greedy(q_t, epsilon, one_by_one, mask)
        assert np.array_equal(chunk.actions(t, q_t, mask), expected)
        for lanes in (slice(0, 2), slice(2, num_lanes)):
            part = None if mask is None else mask[lanes]
            assert np.array_equal(chunk.actions(t, q_t[lanes], part, lanes), expected[lanes])
    assert one_by_one.random() == at_once.random()


def test_ties_are_broken_at_random_where_values_are_equal() -> None:
    rng, steps, lanes = np.random.default_rng(0), 400, 3
    exploration = Exploration(steps, lanes, 4, 0.0, rng, breaks_ties=True)
    q = np.array([[0.0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 2, 1]], np.float32)
    taken = np.stack([exploration.actions(t, q) for t in range(steps)])
    counts = np.stack([np.bincount(taken[:, lane], minlength=4) for lane in range(lanes)])
    assert counts[0].min() > steps / 8  # uniform
    assert (counts[1] > 0).tolist() == [False, True, False, True]
    assert counts[2].tolist() == [0, 0, steps, 0]
    allowed = np.array([[False, True, True, False]] * lanes)
    masked_q = np.where(allowed, q, -np.inf)
    assert set(np.concatenate([exploration.actions(t, masked_q, allowed) for t in range(steps)])) <= {1, 2}
    plain = Exploration(steps, lanes, 4, 0.0, np.random.default_rng(0))
    assert {tuple(plain.actions(t, q)) for t in range(steps)} == {(0, 1, 2)}
