from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learner.update_metrics import HELD_UPDATES, UpdateMeter


@pytest.mark.parametrize("updates", [1, HELD_UPDATES - 1, HELD_UPDATES, 2 * HELD_UPDATES + 3])
@pytest.mark.parametrize("max_grad_norm", [1.5, None])
def test_metrics_are_over_the_updates_since_the_last_reading(
    updates: int, max_grad_norm: float | None
) -> None:
    rng = np.random.default_rng(updates)
    meter = UpdateMeter(max_grad_norm)
    for _ in range(2):  # nothing is left of the first reading in the second
        q, target = rng.normal(size=(2, updates, 8))
        losses, norms = rng.exponential(size=(2, updates))
        for update in range(updates):
            meter.add(
                *torch.from_numpy(np.stack([q[update], target[update]])).float(),
                losses[update],
                norms[update],
            )
        metrics = meter.take()
        assert metrics.loss_mean == pytest.approx(losses.mean())
        assert metrics.loss_max == losses.max()
        assert metrics.q_mean == pytest.approx(q.mean(), abs=1e-6)
        assert (metrics.q_min, metrics.q_max) == pytest.approx((q.min(), q.max()))
        assert metrics.target_mean == pytest.approx(target.mean(), abs=1e-6)
        assert metrics.td_error_mean == pytest.approx(np.abs(target - q).mean(), rel=1e-5)
        assert metrics.grad_norm_mean == pytest.approx(norms.mean())
        assert metrics.grad_norm_clipped_mean == pytest.approx(
            np.minimum(norms, max_grad_norm or 99.0).mean()
        )


def test_without_updates_there_are_no_metrics() -> None:
    meter = UpdateMeter(1.0)
    assert all(map(math.isnan, vars(meter.take()).values()))
    meter.add(torch.ones(2), torch.ones(2), 1.0, 1.0)
    meter.take()
    assert all(map(math.isnan, vars(meter.take()).values()))
