"""Matrix products of dense layers on a CPU: large ones by oneDNN, small ones as torch does them.

Owns that choice and its backward pass; must not import networks, optimizers or numpy.

torch hands float32 products to its BLAS. MKL keeps AMD processors to half of their vector width: on a Zen 5
its 256 x 256 x 256 take 346 us and oneDNN's 167. torch itself calls oneDNN for convolutions, and for products
only in what torch.compile makes; the operator is the one used there. The choice does not look at the
processor; only this one was measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

MIN_MULTIPLICATIONS = 2**22
"""Of a product from which on updates are faster with oneDNN (1.1 x here, 1.8 x from 2**24); at half of it
they are slower (0.93 x): its call, and packing weights that have just changed, cost more than BLAS loses."""

MIN_PACKED_WEIGHTS = 2**17
MIN_PACKED_MULTIPLICATIONS = 2**20
"""Of a layer whose weights are laid out beforehand, and of a product with them: from there on it takes half
to three quarters of BLAS's time. Laying out takes as long as some five products."""

_HAS_ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """torch's layer, by `linear`."""

    _packed: Tensor | None = None

    def pack(self) -> None:
        """Lays the weights out for outputs that need no gradient. Once they change, pack them again."""
        weight = self.weight.detach()
        if _HAS_ONEDNN and weight.numel() >= MIN_PACKED_WEIGHTS and _is_plain(weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        packed = self._packed
        if packed is None or torch.is_grad_enabled() or not _fits(inputs, packed, MIN_PACKED_MULTIPLICATIONS):
            return linear(inputs, self.weight, self.bias)
        return _by_onednn(inputs, packed, self.bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """inputs [B, K], weight [N, K], bias [N] -> inputs weight^T + bias [B, N], as functional.linear."""
    traced = torch.compiler.is_compiling() or torch.is_autocast_enabled(inputs.device.type)
    if traced or not _is_large(inputs, weight):
        return functional.linear(inputs, weight, bias)
    outputs: Tensor = _Linear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return outputs


def linear_relu(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(linear(...)) [B, N]; for backward passes written by hand: autograd does not see it."""
    if _is_large(inputs, weight):
        # Not the ReLU that oneDNN offers to fuse: it makes 0 of NaN, which then nobody would notice.
        return _by_onednn(inputs, weight, bias).relu_()
    return torch.addmm(bias, inputs, weight.t()).relu_()


def product(left: Tensor, right: Tensor) -> Tensor:
    """left [M, K] right [K, N] -> [M, N]; for backward passes written by hand."""
    return _by_onednn(left, right.t(), None) if _is_large(left, right.t()) else torch.mm(left, right)


def product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Writes left [M, K] right [K, N] to out [M, N]."""
    if _is_large(left, right.t()):
        out.copy_(_by_onednn(left, right.t(), None))
    else:
        torch.mm(left, right, out=out)


class _Linear(torch.autograd.Function):
    """functional.linear of [B, K] by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _by_onednn(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        by_inputs = product(gradient, weight) if ctx.needs_input_grad[0] else None
        return by_inputs, product(gradient.t(), inputs), gradient.sum(dim=0)


def _is_large(inputs: Tensor, weight: Tensor) -> bool:
    """Whether inputs [B, K] times weight [N, K] goes to oneDNN."""
    return _HAS_ONEDNN and _fits(inputs, weight, MIN_MULTIPLICATIONS) and _is_plain(weight)


def _fits(inputs: Tensor, weight: Tensor, multiplications: int) -> bool:
    """Whether inputs are float32 [B, K] on the CPU, and the product with weight [N, K] has so many."""
    return inputs.dim() == 2 and inputs.numel() * weight.shape[0] >= multiplications and _is_plain(inputs)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _by_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs [B, K] weight^T [K, N] + bias [N], which must be contiguous: its strides are not looked at."""
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return outputs
