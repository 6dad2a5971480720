"""Q-learning: targets of Q-values, and losses of their TD errors with gradients.

Owns the Bellman targets and the losses of single values, all pure functions; must not import networks,
optimizers or numpy.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from learner.config import LearnerConfig
from learner.objectives.shapes import require_matrix, require_rewards, require_shape, require_vector

TdLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(td [B], weight [B]) -> loss L, a scalar, and dL / dq_tm1 [B], where the target is a constant."""


def q_learning_target(
    r_t: Tensor, discount_t: Tensor, q_t: Tensor, allowed_t: Tensor | None = None
) -> Tensor:
    """y = r_t + discount_t * max_a q_t(a) (Mnih et al. 2015, doi:10.1038/nature14236, algorithm 1).

    Args:
        r_t: [B], the n-step reward.
        discount_t: [B], gamma^n, 0 where the episode terminated; where it was truncated, gamma^n bootstraps.
        q_t: [B, A], the target network's values of the next observations.
        allowed_t: [B, A] bool, the actions to take the maximum over; None: all.

    Returns:
        [B].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    require_rewards(r_t, discount_t)
    require_matrix("q_t", q_t, len(r_t))
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
        q_t_online: [B, A], the online network's values, which choose the next action.
        q_t_target: [B, A], the target network's values, of which the chosen one counts.
        allowed_t: [B, A] bool, the actions to choose among; None: all.

    Returns:
        [B].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    require_rewards(r_t, discount_t)
    require_matrix("q_t_online", q_t_online, len(r_t))
    require_shape("q_t_target", q_t_target, tuple(q_t_online.shape))
    a_t = masked(q_t_online, allowed_t).argmax(dim=1, keepdim=True)
    return r_t + discount_t * q_t_target.gather(1, a_t).squeeze(1)


def masked(q: Tensor, allowed: Tensor | None) -> Tensor:
    """q [B, A] with the lowest float where `allowed` [B, A] is False; q itself without a mask.

    The lowest float is finite, so that a transition to a state without allowed actions, whose discount is 0,
    gives its reward and not NaN. Raises ValueError if shapes do not agree.
    """
    if allowed is None:
        return q
    require_shape("allowed", allowed, tuple(q.shape))
    return q.masked_fill(~allowed, torch.finfo(q.dtype).min)


def best_action(q_t: Tensor, allowed_t: Tensor | None) -> Tensor:
    """The allowed action of the highest Q-value, [B] int64, of q_t [B, A]."""
    return masked(q_t, allowed_t).argmax(dim=1)


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


def squared_td_loss(td: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """L = mean over B of weight * td^2, without a factor 1/2; dL / dq_tm1 = -2 weight td / B.

    Args:
        td: [B], target - q_tm1.
        weight: [B], importance weights.

    Returns:
        L, a scalar, and dL / dq_tm1 [B], where the target is a constant.

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    _require_shapes(td, weight)
    return (weight * td * td).mean(), weight * td * (-2.0 / len(td))


def huber_td_loss(td: Tensor, weight: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """L = mean over B of weight * h(td); h is td^2 / 2 up to |td| = delta, then delta (|td| - delta / 2).

    dL / dq_tm1 = -weight clip(td, -delta, delta) / B. Huber 1964, doi:10.1214/aoms/1177703732. Arguments,
    result and errors as in squared_td_loss.
    """
    _require_shapes(td, weight)
    losses = functional.huber_loss(td, torch.zeros_like(td), reduction="none", delta=delta)
    return (weight * losses).mean(), weight * td.clamp(-delta, delta) * (-1.0 / len(td))


def td_loss(config: LearnerConfig) -> TdLoss:
    """The loss that the configuration names."""
    return squared_td_loss if config.loss == "squared" else partial(huber_td_loss, delta=config.huber_delta)


def _require_shapes(td: Tensor, weight: Tensor) -> None:
    require_vector("td", td)
    require_shape("weight", weight, tuple(td.shape))
