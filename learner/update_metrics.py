"""Sums up the metrics of updates until a chunk ends.

Owns the sums and when they are read; must not import the update step or the loop.
"""

import math

import numpy as np
import torch
from torch import Tensor

from learner.core import UpdateMetrics

HELD_UPDATES = 64
"""Updates whose tensors are summed together: summing those of each update would take longer."""


class UpdateMeter:
    """Counts updates, from what they have left in the host's memory."""

    def __init__(self, max_grad_norm: float | None) -> None:
        self._max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self._held: list[tuple[Tensor, Tensor, float, float]] = []
        self._clear()

    def add(self, q_tm1: Tensor, target: Tensor, loss: float, grad_norm: float) -> None:
        """Counts an update. q_tm1, target: [B], which must stay as they are; grad_norm is before clipping."""
        self._held.append((q_tm1, target, loss, grad_norm))
        if len(self._held) == HELD_UPDATES:
            self._sum_up()

    def take(self) -> UpdateMetrics:
        """Metrics of the updates since the last call."""
        if self._held:
            self._sum_up()
        if not self._updates:
            return UpdateMetrics()
        q, target, td_error = (total / self._updates for total in self._tensor_sums.tolist())
        loss, grad_norm, grad_norm_clipped = (total / self._updates for total in self._float_sums.tolist())
        metrics = UpdateMetrics(
            loss_mean=loss,
            loss_max=self._loss_max,
            q_mean=q,
            q_min=self._q_min.item(),
            q_max=self._q_max.item(),
            target_mean=target,
            td_error_mean=td_error,
            grad_norm_mean=grad_norm,
            grad_norm_clipped_mean=grad_norm_clipped,
        )
        self._clear()
        return metrics

    def _clear(self) -> None:
        self._updates = 0
        self._tensor_sums = torch.zeros(3, dtype=torch.float32, device="cpu")
        self._float_sums = np.zeros(3)
        self._loss_max = -math.inf
        self._q_min = torch.full((), math.inf, dtype=torch.float32, device="cpu")
        self._q_max = torch.full((), -math.inf, dtype=torch.float32, device="cpu")

    def _sum_up(self) -> None:
        """Adds the updates held to the sums, and holds none."""
        qs, targets, losses, norms = zip(*self._held, strict=True)
        self._updates += len(self._held)
        self._held.clear()
        q, target = torch.stack(qs), torch.stack(targets)
        self._tensor_sums += torch.stack(
            [each.mean(dim=1).sum() for each in (q, target, (target - q).abs_())]
        )
        self._float_sums += (sum(losses), sum(norms), sum(min(norm, self._max_grad_norm) for norm in norms))
        self._loss_max = max(self._loss_max, *losses)
        self._q_min = torch.minimum(self._q_min, q.min())
        self._q_max = torch.maximum(self._q_max, q.max())
