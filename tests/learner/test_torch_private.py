"""Every private name of torch that learner/torch_private.py uses: it exists, and does what we rely on."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from learner.torch_private import HAS_ONEDNN, adam_step, onednn_linear, onednn_packed, sgd_step

LEARNER = Path(__file__).resolve().parents[2] / "learner"
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")


def moments(size: int = 5) -> dict[str, Any]:
    return {name: torch.zeros(size) for name in ("exp_avg", "exp_avg_sq")} | {"steps": torch.zeros(())}


def test_fused_adam_is_the_step_of_torch_optim_bit_for_bit() -> None:
    torch.manual_seed(0)
    weights, gradients, state = torch.randn(5), torch.randn(4, 5), moments()
    parameter = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.1, eps=1e-3, fused=True)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        state["steps"] += 1
        adam_step(weights, gradient, **state, learning_rate=0.1, epsilon=1e-3, skip=None)
    assert torch.equal(weights, parameter.detach())
    assert torch.equal(state["exp_avg"], optimizer.state[parameter]["exp_avg"])
    assert torch.equal(state["exp_avg_sq"], optimizer.state[parameter]["exp_avg_sq"])


def test_fused_sgd_is_the_step_of_torch_optim_bit_for_bit() -> None:
    torch.manual_seed(0)
    weights, gradient = torch.randn(5), torch.randn(5)
    parameter = weights.clone().requires_grad_()
    parameter.grad = gradient.clone()
    torch.optim.SGD([parameter], lr=0.1, fused=True).step()
    sgd_step(weights, gradient, learning_rate=0.1, skip=None)
    assert torch.equal(weights, parameter.detach())


@pytest.mark.parametrize("skipped", [True, False])
def test_a_fused_step_is_left_out_where_skip_is_1(skipped: bool) -> None:
    gradient, skip = torch.full((5,), math.nan), torch.tensor(float(skipped))
    for optimizer in ("adam", "sgd"):
        weights, state = torch.ones(5), moments()
        state["steps"] += 1
        if optimizer == "adam":
            adam_step(weights, gradient, **state, learning_rate=0.1, epsilon=1e-8, skip=skip)
        else:
            sgd_step(weights, gradient, learning_rate=0.1, skip=skip)
        assert torch.equal(weights, torch.ones(5)) == skipped
        assert not state["exp_avg"].isnan().any() or not skipped
        # Where it is left out, adam's caller takes its step back.
        assert state["steps"] == 1


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
def test_onednn_multiplies_by_weights_of_any_strides(transposed: bool) -> None:
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(64, 32), torch.randn(16, 32), torch.randn(16)
    expected = functional.linear(inputs, weight, bias)
    given = weight.t().contiguous().t() if transposed else weight
    torch.testing.assert_close(onednn_linear(inputs, given, bias), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(onednn_linear(inputs, given, None), expected - bias, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_onednn_keeps_nan() -> None:
    inputs = torch.full((4, 8), math.nan)
    assert onednn_linear(inputs, torch.ones(2, 8), torch.ones(2)).isnan().all()


@needs_onednn
def test_packed_weights_give_the_same_products_and_stay_as_they_were() -> None:
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(8, 512), torch.randn(256, 512), torch.randn(256)
    packed = onednn_packed(weight)
    assert packed.shape == weight.shape
    assert packed.numel() == weight.numel()
    expected = functional.linear(inputs, weight, bias)
    weight.zero_()  # packed is a copy
    torch.testing.assert_close(onednn_linear(inputs, packed, bias), expected, rtol=1e-4, atol=1e-4)


def test_no_other_module_uses_private_names_of_torch() -> None:
    private = re.compile(r"torch(\.\w+)*\._[a-z]\w*|from torch(\.\w+)* import .*\b_[a-z]|torch\._C")
    users = [path.name for path in LEARNER.rglob("*.py") if private.search(path.read_text("utf-8"))]
    assert users == ["torch_private.py"]
