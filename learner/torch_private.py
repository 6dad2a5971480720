"""Operators of torch that have no public name: fused optimizer steps and the dense layers of oneDNN.

Owns every use of torch's private names in `learner`; must not import anything but torch. For each of them
tests/learner/test_torch_private.py checks what we rely on.
"""

import torch
from torch import Tensor

HAS_ONEDNN: bool = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether this build of torch has oneDNN, and with it `onednn_linear` and `onednn_packed`."""


def adam_step(
    weights: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    *,
    learning_rate: float,
    epsilon: float,
    skip: Tensor | None,
) -> None:
    """One step of Adam (Kingma and Ba 2015, arXiv:1412.6980) in place, with beta 0.9 and 0.999.

    `torch.optim.Adam(fused=True)` calls the same operator. For one tensor, the bookkeeping around it takes
    twice as long as the operator does: a tenth of a small network's update.

    Args:
        weights, gradient, exp_avg, exp_avg_sq: [P] float32.
        steps: scalar float32, the number of steps with this one: Adam's t.
        skip: scalar float32; where it is 1, neither weights nor moments change. The device reads it.
    """
    torch._fused_adam_(
        [weights],
        [gradient],
        [exp_avg],
        [exp_avg_sq],
        [],
        [steps],
        lr=learning_rate,
        beta1=0.9,
        beta2=0.999,
        eps=epsilon,
        weight_decay=0.0,
        amsgrad=False,
        maximize=False,
        found_inf=skip,
    )


def sgd_step(weights: Tensor, gradient: Tensor, *, learning_rate: float, skip: Tensor | None) -> None:
    """weights -= learning_rate * gradient, in place, both [P] float32; `skip` as in `adam_step`."""
    torch._fused_sgd_(
        [weights],
        [gradient],
        [],
        lr=learning_rate,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        found_inf=skip,
    )


def onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs [B, K] weight^T [K, N] + bias [N] -> [B, N], float32 on the CPU, computed by oneDNN.

    The code that torch.compile makes calls this operator. weight may be packed or transposed; bias must be
    contiguous, because the operator ignores its strides. "none" leaves out the ReLU that oneDNN could fuse,
    because that turns NaN into 0.
    """
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return outputs


def onednn_packed(weight: Tensor) -> Tensor:
    """weight [N, K] in the memory layout that oneDNN prefers: a copy, which only `onednn_linear` can read."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed
