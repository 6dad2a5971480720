"""Epsilon-greedy acting and its two schedules.

Owns epsilon; must not import anything but numpy and actors.config.
"""

import numpy as np

from actors.config import EPSILON_DECAY_ENV_STEPS, ActorsConfig, LadderConfig

ALL_LANES = slice(None)


def linear_epsilon(config: ActorsConfig, global_env_steps: int) -> float:
    """epsilon_start at 0 global env steps, then falling linearly to epsilon_end, then constant."""
    decay_env_steps = config.epsilon_decay_env_steps or EPSILON_DECAY_ENV_STEPS
    fraction = min(global_env_steps / decay_env_steps, 1.0)
    return config.epsilon_start + fraction * (config.epsilon_end - config.epsilon_start)


def ladder_epsilons(ladder: LadderConfig, num_lanes: int) -> np.ndarray:
    """[num_lanes] float64, base^(1 + alpha * i / (num_lanes - 1)); a single lane has base.

    Ape-X, arXiv:1803.00933, section 4.1; i counts all lanes of all actors.
    """
    steps: np.ndarray = np.linspace(0.0, 1.0, num_lanes)
    return np.asarray(ladder.base ** (1.0 + ladder.alpha * steps))


class Exploration:
    """The random part of epsilon-greedy acting, drawn at once for T steps of N lanes.

    It draws the same numbers as T draws of one step each, so that the actions do not depend on T.
    """

    def __init__(
        self,
        steps: int,
        num_lanes: int,
        num_actions: int,
        epsilon: float | np.ndarray,
        rng: np.random.Generator,
        *,
        breaks_ties: bool = False,
    ) -> None:
        """epsilon: one for all lanes, or one for each lane [N]. breaks_ties: whether a lane whose random
        action has the greatest value takes that one. A table's values are equal until a reward has been seen,
        and so it goes on looking for one at random; other networks have no equal values.
        """
        self._breaks_ties = breaks_ties
        # One draw of floats serves both choices: rng.integers costs ten times as much for a few lanes.
        drawn = rng.random((steps, 2, num_lanes))
        self._explores = drawn[:, 0] < epsilon
        self._choice = drawn[:, 1]
        self._random_actions = (self._choice * num_actions).astype(np.int64)

    def actions(
        self, t: int, q: np.ndarray, allowed: np.ndarray | None = None, lanes: slice = ALL_LANES
    ) -> np.ndarray:
        """Actions [K] int64 of step t in `lanes`: uniform in lanes that explore, else the argmax of q [K, A].

        A uniform action may be the greedy one. Among equal values the random action wins if ties are broken,
        else the lowest one. allowed [K, A] bool
        has at least one action for each lane; actions are then chosen among these, and q must be -inf for
        the others.
        """
        random_actions: np.ndarray
        if allowed is None:
            random_actions = self._random_actions[t, lanes]
        else:
            up_to = allowed.cumsum(axis=1)
            # The allowed action that comes after `place` other allowed ones.
            place = (self._choice[t, lanes] * up_to[:, -1]).astype(np.int64)
            random_actions = (up_to > place[:, None]).argmax(axis=1)
        actions: np.ndarray = q.argmax(axis=1)
        if self._breaks_ties:
            random_values = np.take_along_axis(q, random_actions[:, None], axis=1)
            np.copyto(actions, random_actions, where=random_values[:, 0] == q.max(axis=1))
        np.copyto(actions, random_actions, where=self._explores[t, lanes])
        return actions


def epsilon_greedy(
    q: np.ndarray,
    epsilon: float | np.ndarray,
    rng: np.random.Generator,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Actions [N] int64 of one step; see `Exploration`. epsilon: one for all lanes, or [N]."""
    num_lanes, num_actions = q.shape
    return Exploration(1, num_lanes, num_actions, epsilon, rng).actions(0, q, allowed)
