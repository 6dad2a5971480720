from __future__ import annotations

import pytest
import torch

from learner.objectives.shapes import require_matrix, require_rewards, require_shape, require_vector


def test_only_the_exact_shape_passes() -> None:
    require_shape("weight", torch.ones(3), (3,))
    require_vector("td", torch.ones(3))
    require_matrix("q_t", torch.ones(3, 2), 3)
    require_rewards(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"weight has shape \[3, 1\], expected \[3\]"):
        require_shape("weight", torch.ones(3, 1), (3,))
    with pytest.raises(ValueError, match=r"td has shape \[3, 1\], expected one axis, \[B\]"):
        require_vector("td", torch.ones(3, 1))
    for wrong in (torch.ones(3), torch.ones(2, 2), torch.ones(3, 2, 1)):
        with pytest.raises(ValueError, match=r"q_t has shape .*, expected \[3, N\]"):
            require_matrix("q_t", wrong, 3)
    with pytest.raises(ValueError, match=r"discount_t has shape \[1\], expected \[3\]"):
        require_rewards(torch.ones(3), torch.ones(1))
