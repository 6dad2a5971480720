"""Munchausen: targets that reward likely actions and bootstrap from a soft policy.

Vieillard et al. 2020, arXiv:2007.14430. Owns pure functions of Q-values and outputs; must not import
networks, optimizers or numpy.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig
from learner.objectives.q_learning import masked
from learner.objectives.shapes import require_matrix, require_rewards, require_shape


class Munchausen(NamedTuple):
    """alpha: factor on the bonus. temperature: tau, in units of the return. clip: l0, the least tau ln pi."""

    alpha: float
    temperature: float
    clip: float


def munchausen(config: LearnerConfig) -> Munchausen | None:
    """The settings of Munchausen targets; None where learner.munchausen is off."""
    if not config.munchausen:
        return None
    return Munchausen(config.munchausen_alpha, config.munchausen_temperature, config.munchausen_clip)


def scaled_log_policy(q: Tensor, allowed: Tensor | None, temperature: float) -> Tensor:
    """tau ln pi of pi = softmax(q / tau) over the allowed actions, -inf for the others (appendix B.1).

    The maximum is subtracted before anything is divided or exponentiated, so that neither overflows, and no
    logarithm of a vanished probability is taken. Where no action is allowed, all count as allowed alike.

    Args:
        q: [B, A].
        allowed: [B, A] bool; None: all.
        temperature: tau.

    Returns:
        [B, A].

    Raises:
        ValueError: shapes do not agree.
    """
    q = masked(q, allowed)
    below_best = q - q.amax(dim=1, keepdim=True)
    return temperature * (below_best / temperature).log_softmax(dim=1)


def munchausen_bonus(
    q_tm1: Tensor, a_tm1: Tensor, allowed_tm1: Tensor | None, settings: Munchausen
) -> Tensor:
    """alpha clip(tau ln pi(a_tm1 | s_tm1), l0, 0), [B]: the clip is on tau ln pi, before alpha.

    Args:
        q_tm1: [B, A], the target network's values of the first observations.
        a_tm1: [B] int64.
        allowed_tm1: [B, A] bool, the actions that they allowed; None: all.

    Raises:
        ValueError: shapes do not agree.
    """
    require_matrix("q_tm1", q_tm1, len(a_tm1))
    log_policy = scaled_log_policy(q_tm1, allowed_tm1, settings.temperature)
    taken = log_policy.gather(1, a_tm1.unsqueeze(1)).squeeze(1)
    return settings.alpha * taken.clamp(settings.clip, 0.0)


def soft_outputs(outputs_t: Tensor, q_t: Tensor, allowed_t: Tensor | None, temperature: float) -> Tensor:
    """sum_a pi(a) (outputs_t(a) - tau ln pi(a)) with pi = softmax(q_t / tau), [B, N].

    Args:
        outputs_t: [B, A, N], the target network's quantiles, or its Q-values with N = 1.
        q_t: [B, A], the values that make the policy.
        allowed_t: [B, A] bool; None: all.
        temperature: tau.

    Raises:
        ValueError: shapes do not agree.
    """
    require_shape("q_t", q_t, tuple(outputs_t.shape[:2]))
    log_policy = scaled_log_policy(q_t, allowed_t, temperature).unsqueeze(2)
    policy = (log_policy / temperature).exp()
    terms = policy * (outputs_t - log_policy)
    # 0 ln 0 is 0; computed, it would be NaN.
    return torch.where(policy == 0.0, 0.0, terms).sum(dim=1)


def munchausen_target(
    batch: Batch, policy_q_tm1: Tensor, q_t: Tensor, outputs_t: Tensor, settings: Munchausen
) -> Tensor:
    """y = r_t + bonus + discount_t * soft_outputs, [B, N] (equation 1 and appendix B.2).

    Over n steps the bonus is that of the first action alone, undiscounted: only its observation is in replay,
    and BTR (arXiv:2411.03820) does the same. Actors make initial priorities by the same rule.

    Args:
        policy_q_tm1, q_t: [B, A], the target network's values of obs_tm1 and obs_t.
        outputs_t: [B, A, N], its outputs for obs_t.

    Raises:
        ValueError: shapes do not agree.
    """
    require_rewards(batch.r_t, batch.discount_t)
    bonus = munchausen_bonus(policy_q_tm1, batch.a_tm1, batch.allowed_tm1, settings)
    soft = soft_outputs(outputs_t, q_t, batch.allowed_t, settings.temperature)
    return (batch.r_t + bonus).unsqueeze(1) + batch.discount_t.unsqueeze(1) * soft
