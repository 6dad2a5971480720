"""The arithmetic by which S shards sample like one buffer.

Owns pure functions; must not import anything but numpy.
"""

import math

import numpy as np


def shard_capacities(capacity: int, num_shards: int) -> tuple[int, ...]:
    """Capacities, in transitions, that add up to `capacity` and differ by at most 1.

    Raises ValueError if a shard would hold nothing.
    """
    if num_shards < 1 or capacity < num_shards:
        raise ValueError(f"capacity {capacity} cannot be split over {num_shards} shards")
    each, rest = divmod(capacity, num_shards)
    return tuple(each + (shard < rest) for shard in range(num_shards))


def allocate(masses: np.ndarray, batch_size: int, num_minibatches: int, u: float) -> np.ndarray:
    """How many transitions each shard draws for each minibatch: counts [K, S] int64, each row adds up to B.

    Systematic sampling: the points u_k, u_k + 1, ..., u_k + B - 1 fall into consecutive intervals of lengths
    B m_s / M. For u uniform in [0, 1) each count has expectation B m_s / M and is less than 1 away from it.
    With the offsets u_k = u + k / K (mod 1) that also holds for the sum over the K minibatches.

    Args:
        masses: m_s [S], with the sum M.
        batch_size: B.
        num_minibatches: K.
        u: in [0, 1).

    Raises ValueError for masses [S] that are negative, not finite or all zero.
    """
    if not (np.isfinite(masses).all() and masses.min() >= 0.0 and masses.sum() > 0.0):
        raise ValueError(f"masses {masses} cannot be sampled from")
    if len(masses) == 1:
        return np.full((num_minibatches, 1), batch_size)
    cumulative = np.cumsum(masses, dtype=np.float64)
    edges = batch_size * (cumulative / cumulative[-1])
    offsets = (u + np.arange(num_minibatches) / num_minibatches) % 1.0
    whole = np.floor(edges)
    # Number of points j + u_k below an edge. Computing edge - u_k instead could lose a point to rounding.
    points_below = whole.astype(np.int64) + (offsets[:, None] < edges - whole)
    return np.diff(points_below, axis=1, prepend=0)


def shard_starts(counts: np.ndarray) -> np.ndarray:
    """Index of each shard's first transition in each minibatch, [K, S] int64, for counts [K, S]."""
    starts: np.ndarray = np.cumsum(counts, axis=1) - counts
    return starts


def draw_probability(shares: np.ndarray, counts: np.ndarray, within_shard: np.ndarray) -> np.ndarray:
    """q [B] float64: the probability that one draw of the minibatch is this transition.

    Args:
        shares: [S], the m_s / M by which `counts` were allocated, however stale.
        counts: [S], draws from each shard.
        within_shard: [B], p_i / P_s at the moment of the draw, ordered by shard.

    The number of draws from shard s has expectation B share_s and does not depend on which transitions are
    drawn, hence q_i = share_s * p_i / P_s.
    """
    probability: np.ndarray = np.repeat(shares, counts) * within_shard
    return probability


def importance_weights(probability: np.ndarray, exponent: float) -> np.ndarray:
    """w_i = (N q_i)^-beta / max_j w_j, [B] float32, for the probabilities q [B] of a whole minibatch.

    Schaul et al. 2016 (arXiv:1511.05952), section 3.4. N cancels in the division.
    """
    weight: np.ndarray = (probability.min() / probability) ** exponent
    return weight.astype(np.float32)


def largest_weight(probability: np.ndarray, exponent: float) -> float:
    """max_j q_j^-beta, by which `importance_weights` are divided (without N), of probabilities q [B]."""
    smallest: float = probability.min().item()
    return math.pow(smallest, -exponent)


def importance_exponent(update: int, start: float, anneal_updates: int) -> float:
    """beta, rising linearly from `start` at update 0 to 1 at update `anneal_updates`, then 1."""
    return start + (1.0 - start) * min(update / anneal_updates, 1.0)
