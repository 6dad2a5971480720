"""Heads: the meaning of a network's outputs (Q-values, a categorical distribution, quantiles) and their fit.

Owns the choice among them; must not import networks, optimizers or numpy.
"""

import torch

from learner.config import LearnerConfig
from learner.objectives.categorical import CategoricalHead
from learner.objectives.q_head import QHead
from learner.objectives.quantile import QuantileHead

Head = QHead | CategoricalHead | QuantileHead
"""The meaning of outputs [B, A] or [B, A, N]."""


def make_head(config: LearnerConfig, device: torch.device) -> Head:
    """The head that the configuration names."""
    match config.head:
        case "q":
            return QHead(config)
        case "c51":
            return CategoricalHead(config, device)
        case "qr" | "iqn":
            return QuantileHead(config)
