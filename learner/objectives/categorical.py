"""C51: targets and loss for a distribution over fixed returns (Bellemare et al. 2017, arXiv:1707.06887).

Owns pure functions of logits and probabilities; must not import networks, optimizers or numpy.
"""

import torch
from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig
from learner.objectives.fit import Fit, Outputs, at_action, of_action
from learner.objectives.q_learning import best_action
from learner.objectives.shapes import require_matrix, require_rewards, require_shape, require_vector


def support(value_range: tuple[float, float], num_atoms: int) -> Tensor:
    """The values z_i = low + i (high - low) / (N - 1) that a return may take, [N] float32."""
    return torch.linspace(*value_range, num_atoms, dtype=torch.float32, device="cpu")


def categorical_mean(logits: Tensor, atoms: Tensor) -> Tensor:
    """E[Z] = sum_i softmax(logits)_i z_i.

    Args:
        logits: [..., N].
        atoms: [N], as `support` gives them.

    Returns:
        [...].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    require_shape("atoms", atoms, tuple(logits.shape[-1:]))
    return logits.softmax(dim=-1) @ atoms


def categorical_target(r_t: Tensor, discount_t: Tensor, probability_t: Tensor, atoms: Tensor) -> Tensor:
    """The distribution of r_t + discount_t Z projected onto the atoms (algorithm 1 of the paper).

    The mass of each atom goes to the two neighbors of clip(r_t + discount_t z_j), more to the nearer one.
    NaN in, NaN out.

    Args:
        r_t: [B], the n-step reward.
        discount_t: [B], gamma^n, 0 where the episode terminated: then all mass is at r_t.
        probability_t: [B, N], the target network's distribution for the chosen action.
        atoms: [N], equally spaced, ascending.

    Returns:
        [B, N], rows that sum to 1.

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    require_rewards(r_t, discount_t)
    require_vector("atoms", atoms)
    num_atoms = len(atoms)
    require_shape("probability_t", probability_t, (len(r_t), num_atoms))
    spacing = (atoms[-1] - atoms[0]) / (num_atoms - 1)
    position = (r_t.unsqueeze(1) + discount_t.unsqueeze(1) * atoms - atoms[0]) / spacing
    position = position.clamp(0.0, num_atoms - 1.0)
    # Atoms below and above a position are lower and lower + 1, even where the position is an atom: floor and
    # ceiling would then agree, and mass be lost. An index cannot be NaN: only the shares pass NaN on.
    lower = position.floor().nan_to_num(0.0).clamp_(max=num_atoms - 2.0)
    upper_share = position - lower
    index = lower.long()
    projected = torch.zeros_like(probability_t)
    projected.scatter_add_(1, index, probability_t * (1.0 - upper_share))
    return projected.scatter_add_(1, index + 1, probability_t * upper_share)


def cross_entropy_loss(logits_tm1: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """L = mean over B of weight * -sum_i target_i log softmax(logits_tm1)_i.

    dL / dlogits_tm1 = weight (softmax(logits_tm1) - target) / B.

    Args:
        logits_tm1: [B, N], of the action taken.
        target: [B, N], from `categorical_target`: a constant whose rows sum to 1.
        weight: [B], importance weights.

    Returns:
        L, a scalar, and dL / dlogits_tm1 [B, N].

    Raises:
        ValueError: shapes do not agree; nothing is broadcast.
    """
    require_vector("weight", weight)
    require_matrix("logits_tm1", logits_tm1, len(weight))
    require_shape("target", target, tuple(logits_tm1.shape))
    loss = -(weight * (target * logits_tm1.log_softmax(dim=1)).sum(dim=1)).mean()
    return loss, weight.unsqueeze(1) * (logits_tm1.softmax(dim=1) - target) / len(weight)


class CategoricalHead:
    """Logits of N fixed returns for each action, outputs [B, A, N]."""

    def __init__(self, config: LearnerConfig, device: torch.device) -> None:
        self._atoms = support(config.value_range, config.num_atoms).to(device)

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs [..., A, N] -> their means [..., A]."""
        return categorical_mean(outputs, self._atoms)

    def fit(self, batch: Batch, outputs: Outputs) -> Fit:
        """Compares distributions, see QHead."""
        values_t = self.values(outputs.t if outputs.choosing is None else outputs.choosing)
        chosen = best_action(values_t, batch.allowed_t)
        logits_tm1 = of_action(outputs.tm1, batch.a_tm1)
        probability_t = of_action(outputs.t, chosen).softmax(dim=1)
        target = categorical_target(batch.r_t, batch.discount_t, probability_t, self._atoms)
        q_tm1, y = self.values(logits_tm1), target @ self._atoms
        loss, gradient = cross_entropy_loss(logits_tm1, target, batch.weight)
        return Fit(
            loss=loss,
            output_gradient=at_action(gradient, batch.a_tm1, outputs.tm1),
            q_tm1=q_tm1,
            target=y,
            td_error=(y - q_tm1).abs(),
        )
