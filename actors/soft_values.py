"""Targets that new transitions are compared with: from the best action, or from a soft policy (Munchausen).

Owns their arithmetic in numpy; must not import anything else. learner.objectives.munchausen is its twin.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GreedyValues:
    """The value of a state is that of its best action, and an action earns no bonus."""

    def state_values(self, q: np.ndarray) -> np.ndarray:
        """max_a q, of q [T, A, N] -> [T, N]; actions that are not allowed have -inf."""
        values: np.ndarray = q.max(axis=1)
        return values

    def bonus(self, taken: np.ndarray, values: np.ndarray) -> np.ndarray | float:
        """0, for Q-values [R] of actions taken and values [R] of their states."""
        return 0.0


@dataclass(frozen=True)
class SoftValues:
    """Those of Munchausen targets (Vieillard et al. 2020, arXiv:2007.14430): pi = softmax(q / temperature).

    alpha: factor on the bonus. temperature: tau, in units of the return. clip: l0, the least tau ln pi.
    """

    alpha: float
    temperature: float
    clip: float

    def state_values(self, q: np.ndarray) -> np.ndarray:
        """sum_a pi(a) (q(a) - tau ln pi(a)) = tau ln sum_a exp(q(a) / tau); arguments as in GreedyValues."""
        best = q.max(axis=1, keepdims=True)
        # A state that allows nothing has -inf here, too, and no difference of infinities.
        below = np.where(np.isfinite(q), q - np.where(np.isfinite(best), best, 0.0), -np.inf)
        with np.errstate(divide="ignore"):
            added = np.log(np.exp(below / self.temperature).sum(axis=1))
        values: np.ndarray = (best[:, 0] + self.temperature * added).astype(q.dtype)
        return values

    def bonus(self, taken: np.ndarray, values: np.ndarray) -> np.ndarray | float:
        """alpha clip(tau ln pi(a), l0, 0), where tau ln pi(a) = q(a) - the state's value."""
        earned: np.ndarray = self.alpha * (taken - values).clip(self.clip, 0.0)
        return earned


GREEDY = GreedyValues()
Values = GreedyValues | SoftValues
"""How the value of a state follows from its Q-values."""
