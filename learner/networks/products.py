"""Matrix products of dense layers on a CPU: by oneDNN from a certain size on, others as torch does them.

Owns these products and their backward pass; must not import architectures, optimizers or numpy.

torch gives float32 products to its BLAS, and calls oneDNN for convolutions, and for products only in what
torch.compile makes. Which is faster depends on the processor: MKL uses half of a vector of AVX-512 on AMD's,
and on a Zen 5 a product of 256 x 256 x 256 takes 346 us by MKL, and 167 us by oneDNN. The sizes below were
measured there; learner/choices.py finds out by trial what holds for another one.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from learner.config import DenseProducts
from learner.torch_private import HAS_ONEDNN, onednn_linear, onednn_packed

MIN_MULTIPLICATIONS = 2**22
"""Size of a product from which updates are faster with oneDNN, by vectors of AVX-512: 1.1 x on a Zen 5, 1.8 x
from 2**24 on. At half of it they are slower (0.93 x): calling oneDNN and packing new weights cost more than
BLAS loses."""

AUTO_MULTIPLICATIONS = math.inf if torch.backends.cpu.get_cpu_capability() == "AVX2" else MIN_MULTIPLICATIONS
"""The same where nothing else is chosen. MKL uses all of a vector of AVX2: on a Zen 3, which has no wider
ones, 256 x 256 x 256 take it 370 us, and oneDNN 540 us; updates of MLPs take 0.8 of the time by MKL, those of
MinAtar's network 0.93."""

MIN_ONEDNN_MULTIPLICATIONS = 2**20
"""Size of a product from which oneDNN can pay on any processor: smaller ones take about as long as a call."""

MIN_PACKED_WEIGHTS = 2**17
MIN_PACKED_MULTIPLICATIONS = 2**20
"""Sizes of a layer and of a product with its packed weights, from which on oneDNN takes half to three
quarters of the time of BLAS. Packing takes as long as about five products."""


@dataclass(frozen=True)
class Products:
    """Products of float32 matrices, of which oneDNN computes those of at least so many multiplications.

    Only those on the CPU: others are left to torch, as are all where torch has no oneDNN.
    """

    least_multiplications: float = AUTO_MULTIPLICATIONS

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """inputs [B, K], weight [N, K], bias [N] -> inputs weight^T + bias [B, N], as functional.linear."""
        traced = torch.compiler.is_compiling() or torch.is_autocast_enabled(inputs.device.type)
        if traced or not self._is_large(inputs, weight, weight.shape[0]):
            return functional.linear(inputs, weight, bias)
        outputs: Tensor = _Linear.apply(inputs, weight, bias, self)  # type: ignore[no-untyped-call]
        return outputs

    def linear_relu(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """relu(linear(...)) [B, N], for backward passes written by hand: autograd does not see it."""
        if self._is_large(inputs, weight, weight.shape[0]):
            return onednn_linear(inputs, weight, bias).relu_()
        return torch.addmm(bias, inputs, weight.t()).relu_()

    def product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """left [M, K] right [K, N] -> [M, N], written to `out` if given; for backward passes by hand."""
        if not self._is_large(left, right, right.shape[1]):
            return torch.mm(left, right, out=out)
        result = onednn_linear(left, right.t(), None)
        return result if out is None else out.copy_(result)

    def _is_large(self, inputs: Tensor, weight: Tensor, num_outputs: int) -> bool:
        """Whether inputs [B, K] times a weight of num_outputs columns goes to oneDNN."""
        # The size first: small networks ask often, and the answer is mostly no.
        if not HAS_ONEDNN or inputs.numel() * num_outputs < self.least_multiplications:
            return False
        return inputs.dim() == 2 and _is_plain(inputs) and _is_plain(weight)


BY_SIZE = Products()


def products_by(wanted: DenseProducts) -> Products:
    """The products that learner.dense_products names. Raises ValueError if this torch has no oneDNN."""
    if wanted == "onednn" and not HAS_ONEDNN:
        raise ValueError(
            "learner.dense_products is onednn, but this build of torch has no oneDNN; give auto or blas"
        )
    least = {"auto": AUTO_MULTIPLICATIONS, "onednn": MIN_ONEDNN_MULTIPLICATIONS, "blas": math.inf}
    return Products(least[wanted])


class DenseLayer(nn.Linear):
    """A layer whose products are chosen.

    Attributes:
        products: compute them.
    """

    products = BY_SIZE


class Linear(DenseLayer):
    """torch's layer, computed by `products`."""

    _packed: Tensor | None = None

    def pack(self) -> None:
        """Packs the weights for outputs that need no gradient. Repeat it after each change of the weights."""
        weight = self.weight.detach()
        if HAS_ONEDNN and weight.numel() >= MIN_PACKED_WEIGHTS and _is_plain(weight):
            self._packed = onednn_packed(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        packed = self._packed
        if packed is None or torch.is_grad_enabled() or not _fits(inputs, packed):
            return self.products.linear(inputs, self.weight, self.bias)
        return onednn_linear(inputs, packed, self.bias)


class _Linear(torch.autograd.Function):
    """functional.linear of [B, K] by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, products: Products) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.products = products
        return onednn_linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        inputs, weight = ctx.saved_tensors
        product = ctx.products.product
        input_gradient = product(output_gradient, weight) if ctx.needs_input_grad[0] else None
        return input_gradient, product(output_gradient.t(), inputs), output_gradient.sum(dim=0), None


def _fits(inputs: Tensor, packed: Tensor) -> bool:
    """Whether inputs are plain [B, K], and their product with packed weights [N, K] is large enough."""
    multiplications = inputs.numel() * packed.shape[0]
    return inputs.dim() == 2 and multiplications >= MIN_PACKED_MULTIPLICATIONS and _is_plain(inputs)


def _is_plain(tensor: Tensor) -> bool:
    """Whether oneDNN takes it: float32 on the CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32
