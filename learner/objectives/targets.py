"""What Q-values are regressed towards: pure functions of rewards, discounts and next values.

Owns the Bellman targets; must not import networks, optimizers or numpy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.objectives.shapes import require_shape, require_vector


def q_learning_target(
    r_t: Tensor, discount_t: Tensor, q_t: Tensor, allowed_t: Tensor | None = None
) -> Tensor:
    """y = r_t + discount_t * max_a q_t(a) (Mnih et al. 2015, doi:10.1038/nature14236, algorithm 1).

    discount_t is gamma^n, and 0 where the episode terminated; a truncated row keeps it and so bootstraps.

    Args:
        r_t: [B], the n-step reward.
        discount_t: [B].
        q_t: [B, A], the target network's values of the next observations.
        allowed_t: [B, A] bool, the actions that the maximum is over; None: all.

    Returns:
        [B].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    _require_batch_shapes(r_t, discount_t)
    _require_values("q_t", q_t, len(r_t))
    return r_t + discount_t * masked(q_t, allowed_t).amax(dim=1)


def double_q_target(
    r_t: Tensor,
    discount_t: Tensor,
    q_t_online: Tensor,
    q_t_target: Tensor,
    allowed_t: Tensor | None = None,
) -> Tensor:
    """y = r_t + discount_t * q_t_target(argmax_a q_t_online(a)) (van Hasselt et al. 2016, arXiv:1509.06461).

    Args:
        r_t: [B], the n-step reward.
        discount_t: [B], gamma^n, 0 where the episode terminated.
        q_t_online: [B, A], chooses the action.
        q_t_target: [B, A], values it.
        allowed_t: [B, A] bool, the actions to choose among; None: all.

    Returns:
        [B].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    _require_batch_shapes(r_t, discount_t)
    _require_values("q_t_online", q_t_online, len(r_t))
    require_shape("q_t_target", q_t_target, tuple(q_t_online.shape))
    a_t = masked(q_t_online, allowed_t).argmax(dim=1, keepdim=True)
    return r_t + discount_t * q_t_target.gather(1, a_t).squeeze(1)


def masked(q: Tensor, allowed: Tensor | None) -> Tensor:
    """q [B, A], lower than any other value where `allowed` [B, A] is False; q itself without a mask.

    Finite, so that a row without any allowed action, whose discount is 0, gives its reward and not NaN.
    Raises ValueError where shapes do not agree.
    """
    if allowed is None:
        return q
    require_shape("allowed", allowed, tuple(q.shape))
    return q.masked_fill(~allowed, torch.finfo(q.dtype).min)


def tabular_backup(
    q: Tensor, s_tm1: int, a_tm1: int, r_t: float, discount_t: float, s_t: int, alpha: float
) -> Tensor:
    """Q(s, a) <- Q(s, a) + alpha [r + gamma max_a' Q(s', a') - Q(s, a)] (Watkins and Dayan 1992, eq. 1).

    Args:
        q: [S, A], left as it is.
        s_tm1, a_tm1, r_t, discount_t, s_t: one transition; discount_t is 0 where it terminated.
        alpha: step size.

    Returns:
        [S, A], a new table that differs in at most one entry.

    Raises:
        ValueError: q is not [S, A].
    """
    if q.dim() != 2:
        raise ValueError(f"q has shape {list(q.shape)}, expected [S, A]")
    backed_up = q.clone()
    backed_up[s_tm1, a_tm1] += alpha * (r_t + discount_t * q[s_t].max() - q[s_tm1, a_tm1])
    return backed_up


def _require_batch_shapes(r_t: Tensor, discount_t: Tensor) -> None:
    require_vector("r_t", r_t)
    require_shape("discount_t", discount_t, tuple(r_t.shape))


def _require_values(name: str, q: Tensor, batch_size: int) -> None:
    if q.dim() != 2 or len(q) != batch_size:
        raise ValueError(f"{name} has shape {list(q.shape)}, expected [{batch_size}, A]")
