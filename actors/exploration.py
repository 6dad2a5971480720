"""Epsilon-greedy acting and its two schedules.

Owns epsilon; must not import anything but numpy and the settings.
"""

from __future__ import annotations

import numpy as np

from actors.config import ActorsConfig, LadderConfig


def linear_epsilon(config: ActorsConfig, global_env_steps: int) -> float:
    """epsilon_start at 0 global env steps, falling linearly to epsilon_end, then constant."""
    fraction = min(global_env_steps / config.epsilon_decay_env_steps, 1.0)
    return config.epsilon_start + fraction * (config.epsilon_end - config.epsilon_start)


def ladder_epsilons(ladder: LadderConfig, num_lanes: int) -> np.ndarray:
    """[num_lanes] float64, base^(1 + alpha * i / (num_lanes - 1)); one lane has base.

    Ape-X, arXiv:1803.00933, section 4.1; i counts over all lanes of all actors.
    """
    steps: np.ndarray = np.linspace(0.0, 1.0, num_lanes)
    return np.asarray(ladder.base ** (1.0 + ladder.alpha * steps))


def epsilon_greedy(
    q: np.ndarray,
    epsilon: float | np.ndarray,
    rng: np.random.Generator,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Actions [N] int64: uniform with probability epsilon (one, or [N]), else the argmax of q [N, A].

    A uniform action may be the greedy one. Among equal values the lowest action wins. With allowed [N, A]
    bool, at least one in each row, uniform means among those; q must be -inf for the others.
    """
    num_lanes, num_actions = q.shape
    # One draw of floats for both choices: rng.integers costs ten times as much for a few lanes.
    chance, choice = rng.random((2, num_lanes))
    anything: np.ndarray
    if allowed is None:
        anything = (choice * num_actions).astype(np.int64)
    else:
        up_to = allowed.cumsum(axis=1)
        # The first action with more than `place` allowed ones up to and with it.
        place = (choice * up_to[:, -1]).astype(np.int64)
        anything = (up_to > place[:, None]).argmax(axis=1)
    return np.where(chance < epsilon, anything, q.argmax(axis=1))
