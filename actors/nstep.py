"""n-step returns over dense [T, N] steps.

Owns the arithmetic of transitions; must not import anything but numpy and the end bits of blocks.
"""

from dataclasses import dataclass

import numpy as np

from replay_service.block import TERMINATED, TRUNCATED


@dataclass(frozen=True, eq=False)
class NStepTransitions:
    """The transition from each of T steps of N lanes, [T, N] each; meaningless if the step was not real.

    Attributes:
        reward: float64, sum over k < m of gamma^k * r_{t+k}.
        discount: float64, gamma^m; 0 if the last step terminated (even if it was also truncated).
        steps: int64, m: n, or fewer if the episode ended (or the data did: then it is not complete).
        end: uint8, TERMINATED and TRUNCATED bits of the last step.
        complete: bool, the step was real and no later step can change the transition. It never becomes so if
            the transition needs a step that is not real: there its episode broke off.
    """

    reward: np.ndarray
    discount: np.ndarray
    steps: np.ndarray
    end: np.ndarray
    complete: np.ndarray

    @property
    def next_step(self) -> np.ndarray:
        """[T, N] int64, t + m: a transition bootstraps from the frame after step t + m - 1."""
        return self.steps + np.arange(len(self.steps))[:, None]


def n_step_transitions(
    reward: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    real: np.ndarray,
    n_step: int,
    gamma: float,
) -> NStepTransitions:
    """Transitions of up to n_step steps (Sutton and Barto 2018, equation 7.1, as reward and discount).

    reward [T, N] float; terminated, truncated, real [T, N] bool. real is False if a step only reset the
    environment: after an end, or because an episode broke off. A truncated transition keeps its discount: it
    bootstraps from the true last observation.
    """
    num_steps = len(reward)
    bits = terminated * np.uint8(TERMINATED) | truncated * np.uint8(TRUNCATED)
    goes_on = bits == 0
    total, steps, end = np.array(reward, np.float64), real.astype(np.int64), bits.copy()
    running = real & goes_on
    for k in range(1, min(n_step, num_steps)):
        early = slice(num_steps - k)  # those whose step t + k is in the data
        now = running[early]
        now &= real[k:]
        total[early] += np.where(now, gamma**k * reward[k:], 0.0)
        steps[early] += now
        end[early] |= bits[k:] * now
        now &= goes_on[k:]
    discount = np.where(end & TERMINATED, 0.0, (gamma ** np.arange(n_step + 1)).take(steps))
    return NStepTransitions(total, discount, steps, end, real & ((end != 0) | (steps == n_step)))
